"""A resolved checkpoint: which files, which components, how to reach the weights."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Self

from exporter.artifact import FileRecord, OverlayRecord, hash_file
from exporter.checkpoints.safetensors_file import SafetensorsFile, StoredTensor
from exporter.checkpoints.safety import MAX_JSON
from exporter.errors import CheckpointError
from exporter.hashing import Once

if TYPE_CHECKING:
    import torch
    from torch import nn

WEIGHT_STEMS = ("diffusion_pytorch_model", "model")
SEVERAL = "MultiControlNetModel"
PICKLE_STEMS = ("diffusion_pytorch_model", "pytorch_model")


@dataclass(frozen=True)
class Checkpoint:
    """A pipeline in diffusers layout, on this disk.

    Attributes:
        source: What the user asked for (`builtin:shapes`, a path, `org/name`).
        revision: Commit sha where the Hub gives one, else None.
        root: The folder with `model_index.json`.
        index: The parsed `model_index.json`.
        variant: `fp16` selects `*.fp16.safetensors`; None the plain files.
        allow_pickle: Open `.bin` and `.ckpt` weights where a component has no safetensors.
        techniques: What its components are to be exported with: (name, options) of `exporter.techniques`.
    """

    source: str
    root: Path
    index: Mapping[str, Any]
    revision: str | None = None
    variant: str | None = None
    allow_pickle: bool = False
    techniques: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    _stores: dict[str, dict[str, StoredTensor]] = field(default_factory=dict, compare=False, repr=False)
    _hashed: Once = field(default_factory=Once, init=False, compare=False, repr=False)

    @property
    def pipeline_class(self) -> str:
        """The diffusers class that `model_index.json` names, e.g. `StableDiffusionPipeline`."""
        return str(self.index["_class_name"])

    @property
    def component_classes(self) -> dict[str, tuple[str, str]]:
        """Component folder → (library, class) for every component that is not null.

        Of several ControlNets the index names one folder; the others (`controlnet_1` …) lie beside it.
        """
        found = {
            name: (value[0], value[1])
            for name, value in self.index.items()
            if isinstance(value, list | tuple) and len(value) == 2 and value[1] is not None
        }
        if found.get("controlnet", ("", ""))[1] == SEVERAL:
            beside = itertools.takewhile(
                lambda name: (self.root / name / "config.json").is_file(),
                (f"controlnet_{n}" for n in itertools.count(1)),
            )
            found |= dict.fromkeys(("controlnet", *beside), ("diffusers", "ControlNetModel"))
        return found

    def config(self, folder: str) -> dict[str, Any]:
        """`<folder>/config.json` (or the scheduler's / tokenizer's file of that role).

        Raises:
            CheckpointError: The file is missing or not JSON.
        """
        for name in ("config.json", "scheduler_config.json", "tokenizer_config.json"):
            path = self.root / folder / name
            if path.is_file():
                return read_json(path)
        raise CheckpointError(
            f"Component {folder!r} of {self.source} has no config.json.",
            hint="Is this a complete diffusers folder? `exporter inspect` lists what is there.",
        )

    def stored(self, folder: str) -> dict[str, StoredTensor]:
        """Every tensor of a component by its stored name, memory-mapped and not yet read.

        Raises:
            CheckpointError: No weights, only pickles, a missing shard, or a damaged file.
        """
        if folder not in self._stores:
            tensors: dict[str, StoredTensor] = {}
            for path in self.weight_files(folder):
                tensors.update(_read(path))
            index = self._index(folder)
            if index is not None:
                check_index(index, tensors)
            self._stores[folder] = tensors
        return self._stores[folder]

    @property
    def pickled(self) -> bool:
        """Whether any component's weights are pickles."""
        folders = [f for f in self.component_classes if (self.root / f / "config.json").is_file()]
        return any(path.suffix != ".safetensors" for f in folders for path in self.weight_files(f))

    def weight_files(self, folder: str) -> list[Path]:
        """The weight files of one component, shards in index order: safetensors, or allowed pickles."""
        base = self.root / folder
        index = self._index(folder)
        if index is not None:
            return _shards(base, read_json(index), index.name)
        for name in (f"{stem}{s}.safetensors" for s in self._suffixes for stem in WEIGHT_STEMS):
            if (base / name).is_file():
                return [base / name]
        for stem in WEIGHT_STEMS:  # a folder that holds only a variant is still usable
            found = sorted(base.glob(f"{stem}.*.safetensors"))
            if len(found) == 1:
                return found
        pickles = self._pickles(base)
        if pickles and self.allow_pickle:
            return pickles
        if pickles:
            raise CheckpointError(
                f"Component {folder!r} of {self.source} has only pickled weights ({pickles[0].name}); "
                "a pickle can run code when it is opened, so it is refused.",
                hint="If you trust its author, add --allow-pickle: PyTorch's restricted reader then builds "
                "the tensors and nothing else. `--to safetensors` makes safe files of them.",
            )
        raise CheckpointError(
            f"Component {folder!r} of {self.source} has no safetensors weights in {base}.",
            hint="Download the complete checkpoint.",
        )

    @property
    def _suffixes(self) -> tuple[str, ...]:
        """What stands between a file's stem and its ending, the most wanted first."""
        return (f".{self.variant}", "") if self.variant else ("",)

    def _index(self, folder: str) -> Path | None:
        """The index of a sharded component, unless a single file is a better answer to the variant."""
        base = self.root / folder
        for suffix in self._suffixes:
            for stem in WEIGHT_STEMS:
                index = base / f"{stem}.safetensors.index{suffix}.json"
                if index.is_file():
                    return index
                if (base / f"{stem}{suffix}.safetensors").is_file():
                    return None
        found = [p for stem in WEIGHT_STEMS for p in base.glob(f"{stem}.safetensors.index.*.json")]
        return found[0] if len(found) == 1 else None  # only a variant, and it is sharded

    def _pickles(self, base: Path) -> list[Path]:
        for suffix in self._suffixes:
            for stem in PICKLE_STEMS:
                index = base / f"{stem}.bin.index{suffix}.json"
                if index.is_file():
                    return _shards(base, read_json(index), index.name)
                if (base / f"{stem}{suffix}.bin").is_file():
                    return [base / f"{stem}{suffix}.bin"]
        return [p for pattern in ("*.bin", "*.ckpt") for p in sorted(base.glob(pattern))][:1]

    def reference_stored(self, folder: str) -> dict[str, StoredTensor]:
        """As `stored`, for the module that artifacts are judged against.

        A source that is renamed or changed on its way gives the same tensors here by another way, so
        that a fault of the first way is seen.
        """
        return self.stored(folder)

    def attach(self, folder: str, module: nn.Module, dtype: torch.dtype) -> None:
        """Add to the reference module of a component what is computed beside its weights (a LoRA)."""

    def rounded(self, folder: str) -> frozenset[str]:
        """Layers whose exported weight is rounded once more than the reference's (a fused LoRA)."""
        return frozenset()

    def exported_with(self, techniques: Iterable[tuple[str, Mapping[str, Any]]]) -> Self:
        """The same checkpoint, whose components carry these techniques and no others."""
        other = copy.copy(self)
        object.__setattr__(other, "techniques", tuple(techniques))
        return other

    def unattached(self) -> Self:
        """The same checkpoint, whose modules compute nothing beside their weights."""
        other = copy.copy(self)
        object.__setattr__(other, "attach", lambda folder, module, dtype: None)
        object.__setattr__(other, "reference_digest", lambda folder: "")
        return other

    @property
    def overlays(self) -> tuple[OverlayRecord, ...]:
        """What was laid over the source, in order."""
        return ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know: what was assumed, what was left out."""
        return ()

    @property
    def lacking(self) -> Mapping[str, str]:
        """Parts of the pipeline that the source has not and somebody could give: folder → in words."""
        return {}

    @property
    def advice(self) -> str:
        """How to give what is lacking."""
        return ""

    def expected(self, folder: str) -> Mapping[str, Any]:
        """What is known of the config of a part that is lacking."""
        return {}

    @property
    def opened_with(self) -> Mapping[str, Any]:
        """Fields of the manifest's `SourceRecord` that say how the source was opened."""
        return {"pickle": True} if self.allow_pickle and self.pickled else {}

    def reference_digest(self, folder: str) -> str:
        """Identity of what `attach` adds; empty when it adds nothing."""
        return ""

    @property
    def files(self) -> list[FileRecord]:
        """Every file of the components in use, with size and sha256 (read once)."""
        return self._hashed.take(self._read_files)

    def _read_files(self, stop: Event) -> list[FileRecord]:
        return self.files_of(self.component_classes, stop)

    def stop_hashing(self) -> None:
        """Whoever waits for `files` in another thread gets `InterruptedError`: nobody wants them any more."""
        self._hashed.give_up()

    def files_of(self, folders: Iterable[str], stop: Event | None = None) -> list[FileRecord]:
        """As `files`, of some of the folders; each call reads them."""
        found = [self.root / "model_index.json"]
        for folder in sorted(folders):
            base = self.root / folder
            if base.is_dir():
                weights = self.weight_files(folder) if (base / "config.json").is_file() else []
                small = [p for p in sorted(base.iterdir()) if p.suffix in {".json", ".txt", ".model"}]
                found += [*small, *weights]
        return [hash_file(path, self.root, stop=stop) for path in found]

    def validate(self) -> None:
        """Open every weight file's header, so that damage is reported before any work.

        Raises:
            CheckpointError: With the file and the reason.
        """
        for folder, (library, _) in self.component_classes.items():
            if library in {"diffusers", "transformers"} and (self.root / folder / "config.json").is_file():
                self.stored(folder)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from disk.

    Raises:
        CheckpointError: Not readable or not an object.
    """
    try:
        if path.stat().st_size > MAX_JSON:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes, too many for a configuration.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object.")
    return value


def _read(path: Path) -> Mapping[str, StoredTensor]:
    if path.suffix == ".safetensors":
        return SafetensorsFile(path).tensors
    from exporter.checkpoints.pickled import read_state_dict

    tensors = read_state_dict(path, allow=True)
    if not tensors:
        raise CheckpointError(f"{path.name} holds no tensors by name ({path}).")
    return tensors


def check_index(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Every tensor lies in the shard that the index names.

    Raises:
        CheckpointError: Naming the first that does not.
    """
    for name, shard in (read_json(path).get("weight_map") or {}).items():
        if name not in tensors or tensors[name].file.path.name != shard:
            raise CheckpointError(
                f"{path.name} in {path.parent} says that {name!r} lies in {shard}, which does not hold it.",
                hint="Index and shards are of different versions; download the checkpoint again.",
            )


def _shards(base: Path, index: Mapping[str, Any], index_name: str) -> list[Path]:
    table = index.get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise CheckpointError(f"{index_name} in {base} has no usable weight_map.")
    names = sorted(set(table.values()))
    for name in names:
        if Path(name).name != name or "\0" in name or name in {"", ".", ".."}:
            raise CheckpointError(
                f"{index_name} in {base} names a shard outside its folder ({name!r}); refused."
            )
        if not (base / name).is_file():
            raise CheckpointError(
                f"{index_name} in {base} names the shard {name}, which is missing.",
                hint="Download the checkpoint again.",
            )
    if not names:
        raise CheckpointError(f"{index_name} in {base} lists no shards.")
    return [base / name for name in names]
