"""The parts of a pipeline as far as placing them needs: class, config, and the headers of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.artifact import Artifact, Manifest
from exporter.checkpoints.safetensors_file import ITEM_BYTES
from exporter.errors import CheckpointError
from exporter.storage import TORCH_NAMES, is_float

if TYPE_CHECKING:
    from torch import nn

    from exporter.checkpoints import Checkpoint
    from exporter.checkpoints.remote import Remote, Tensors


@dataclass(frozen=True)
class Part:
    """A part with weights.

    Attributes:
        name: Folder, or the name of a component in an artifact of another format.
        library / class_name: As `model_index.json` has them; empty where a runtime opens the file.
        config: Its `config.json`.
        tensors: What its files hold; empty where they are no safetensors.
        file_bytes: Of its files, where they are no safetensors.
        parameters: Of them, as the manifest says.
    """

    name: str
    library: str = ""
    class_name: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)
    file_bytes: int = 0
    parameters: int = 0

    @property
    def numel(self) -> int:
        return sum(math.prod(shape) for _, shape in self.tensors.values()) or self.parameters

    @property
    def stored_bytes(self) -> int:
        """What its weights take on disk: what a download brings."""
        return sum(math.prod(shape) * ITEM_BYTES[d] for d, shape in self.tensors.values()) or self.file_bytes

    def stored_dtypes(self) -> dict[str, int]:
        """Dtype → number of weights in it."""
        found: dict[str, int] = {}
        for dtype, shape in self.tensors.values():
            found[TORCH_NAMES[dtype]] = found.get(TORCH_NAMES[dtype], 0) + math.prod(shape)
        return found

    def bytes_in(self, dtype: str) -> int:
        """What the tensors of the files take when floating ones are loaded in a dtype (torch's name)."""
        from exporter.storage import SAFETENSORS_NAMES

        wanted = ITEM_BYTES[SAFETENSORS_NAMES[dtype]]
        return sum(
            math.prod(shape) * (wanted if is_float(stored) else ITEM_BYTES[stored])
            for stored, shape in self.tensors.values()
        )

    def module(self) -> nn.Module | None:
        """The library's module on the meta device, built from the config; None where that is not possible."""
        cls = _class(self.library, self.class_name)
        if cls is None or not self.config:
            return None
        from accelerate import init_empty_weights

        try:
            with init_empty_weights():
                if hasattr(cls, "from_config") and self.library == "diffusers":
                    return cls.from_config(dict(self.config))  # type: ignore[no-any-return]
                return cls(cls.config_class.from_dict(dict(self.config)))  # type: ignore[no-any-return]
        except Exception:  # a config of another version, or one that does not fit: the headers still count
            return None


@dataclass(frozen=True)
class Parts:
    """A pipeline's parts with weights, and where they were read."""

    source: str
    pipeline_class: str
    parts: tuple[Part, ...]
    revision: str | None = None
    target: str | None = None

    @property
    def splittable(self) -> bool:
        """Whether PyTorch loads it, so that a part can lie on several devices."""
        return self.target in (None, "safetensors")


def parts_of(source: str, *, revision: str | None = None, variant: str | None = None) -> Parts:
    """Read a folder, a file, an artifact or the Hub; of the last, no weight is fetched.

    Raises:
        CheckpointError, ArtifactError, NetworkError: It is not there, or damaged.
    """
    from exporter.checkpoints import resolve
    from exporter.checkpoints.hub import is_hub_id
    from exporter.inspection import is_artifact

    path = Path(source).expanduser()
    if is_artifact(source):
        artifact = Artifact.open(path)
        if artifact.manifest.target != "safetensors":
            return _of_manifest(source, artifact.manifest, None)
        variants = {record.details.get("variant") for record in artifact.manifest.components}
        return _of_checkpoint(resolve(source, variant=next(iter(variants), None)), "safetensors")
    if not path.exists() and is_hub_id(source) and not _offline():
        from exporter.checkpoints.remote import look

        return _of_remote(look(source, revision=revision, variant=variant))
    return _of_checkpoint(resolve(source, revision=revision, variant=variant), None)


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _of_manifest(source: str, manifest: Manifest, revision: str | None) -> Parts:
    parts = [
        Part(name=r.name, file_bytes=sum(f.bytes for f in r.files), parameters=r.parameters)
        for r in manifest.components
    ]
    return Parts(source, manifest.source.pipeline_class, tuple(parts), revision, manifest.target)


def _of_checkpoint(checkpoint: Checkpoint, target: str | None) -> Parts:
    parts = []
    for name, (library, class_name) in checkpoint.component_classes.items():
        try:
            config = checkpoint.config(name)
            if not (checkpoint.root / name / "config.json").is_file():
                continue  # a scheduler, a tokenizer
        except CheckpointError:
            continue
        tensors = {n: (t.dtype, t.shape) for n, t in checkpoint.stored(name).items()}
        parts.append(Part(name, library, class_name, config, tensors))
    return _some(
        Parts(checkpoint.source, checkpoint.pipeline_class, tuple(parts), checkpoint.revision, target)
    )


def _of_remote(remote: Remote) -> Parts:
    if remote.manifest is not None and remote.manifest.target != "safetensors":
        return _of_manifest(remote.repo, remote.manifest, remote.revision)
    parts = [
        Part(name, str(value[0]), str(value[1]), remote.configs[name], remote.tensors[name])
        for name, value in remote.index.items()
        if name in remote.configs and isinstance(value, list) and value[1]
    ]
    target = None if remote.manifest is None else "safetensors"
    return _some(Parts(remote.repo, str(remote.index["_class_name"]), tuple(parts), remote.revision, target))


def _some(found: Parts) -> Parts:
    if not any(part.numel for part in found.parts):
        raise CheckpointError(f"{found.source} holds no weights, so there is nothing to place.")
    return found


def _class(library: str, name: str) -> Any:
    """A model class of diffusers or transformers; never one that a checkpoint brings."""
    if library not in ("diffusers", "transformers"):
        import diffusers.pipelines as pipelines

        holder = getattr(pipelines, library, None) if library.isidentifier() else None
    else:
        holder = import_module(library)
    cls = getattr(holder, name, None)
    from torch import nn

    return cls if isinstance(cls, type) and issubclass(cls, nn.Module) else None


__all__ = ["Part", "Parts", "parts_of"]
