"""A checkpoint in one file, in its authors' own layout, as if it were a folder in diffusers layout.

Configs are made from the shapes and from what its family's authors published, the tokenizer is the
bundled one of CLIP, and every tensor is found under diffusers' name where it lies in the file. What it
is judged against goes another way: there diffusers' own conversion names the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from exporter.checkpoints import pickled
from exporter.checkpoints.checkpoint import Checkpoint, read_json
from exporter.checkpoints.derived import held
from exporter.checkpoints.one_file import OneFileCheckpoint, Tensors
from exporter.checkpoints.original import families, flow, unet, vae
from exporter.checkpoints.original.families import Family
from exporter.checkpoints.safetensors_file import SafetensorsFile, StoredTensor
from exporter.checkpoints.safety import check_folder
from exporter.checkpoints.single_configs import Configs, part, text_weights
from exporter.checkpoints.small_files import folder_of
from exporter.errors import CheckpointError, UsageError


@dataclass(frozen=True, kw_only=True)
class SingleFileCheckpoint(OneFileCheckpoint):
    """Attributes:
    family: What it holds.
    """

    family: Family

    def _mapped(self, folder: str) -> dict[str, StoredTensor]:
        if folder == "unet":
            return unet.weights(part(self.tensors, families.UNET), self.config("unet"))
        if folder == "vae":
            return vae.weights(part(self.tensors, families.VAE), self.config("vae"))
        for encoder in self.family.texts:
            if encoder.folder == folder:
                used = int(self.config(folder)["num_hidden_layers"])
                return without_layers(text_weights(self.tensors, encoder), used)
        raise CheckpointError(f"{self.source} has no component {folder!r}.")

    def _converted(self, folder: str) -> dict[str, StoredTensor]:
        return {name: held(name, tensor, self.path) for name, tensor in self._named(folder).items()}

    def _named(self, folder: str) -> dict[str, Any]:
        from diffusers.loaders import single_file_utils as theirs

        if folder in ("unet", "vae"):
            prefix = families.UNET if folder == "unet" else families.VAE
            given = {n: t.load() for n, t in self.tensors.items() if n.startswith(prefix)}
            convert = (
                theirs.convert_ldm_unet_checkpoint if folder == "unet" else theirs.convert_ldm_vae_checkpoint
            )
            return convert(given, config=self.config(folder))
        encoder = next(e for e in self.family.texts if e.folder == folder)
        given = {n: t.load() for n, t in self.tensors.items() if n.startswith(encoder.prefix)}
        if encoder.layout == "clip":
            return theirs.convert_ldm_clip_checkpoint(given)
        shell = SimpleNamespace(config=SimpleNamespace(hidden_size=self.config(folder)["hidden_size"]))
        return theirs.convert_open_clip_checkpoint(shell, given, prefix=encoder.prefix)


def without_layers(tensors: Tensors, first: int) -> dict[str, StoredTensor]:
    """A text encoder's tensors without the layers from `first` on, which the pipeline does not use."""
    prefix = "text_model.encoder.layers."
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(prefix) or int(name.removeprefix(prefix).split(".")[0]) < first
    }


def read_tensors(path: Path, *, allow_pickle: bool) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Every tensor of a file by name, and the header's remarks.

    Raises:
        CheckpointError: Not a file of tensors, damaged, or a pickle that is not allowed.
    """
    if path.suffix.lower() in pickled.SUFFIXES:
        return pickled.read_state_dict(path, allow=allow_pickle), {}
    if path.suffix.lower() not in {".safetensors", ".sft"}:
        raise CheckpointError(
            f"{path.name} is no file this version reads as a model: it takes .safetensors, and .ckpt with "
            "--allow-pickle."
        )
    file = SafetensorsFile(path)
    return file.tensors, file.metadata


def open_single_file(
    source: str,
    path: Path,
    *,
    allow_pickle: bool = False,
    config: str | None = None,
    tokenizer: str | None = None,
    base: Callable[[Collection[str]], Checkpoint] | None = None,
    base_source: str | None = None,
) -> Checkpoint:
    """Open a checkpoint in one file.

    Args:
        source: As the user typed it.
        config: Folder in diffusers layout whose configs, scheduler and tokenizer replace what would be
            inferred; it need not hold all of them.
        tokenizer: Folder with `vocab.json` and `merges.txt`, for vocabularies other than CLIP's; or of T5's.
        base: Opens the checkpoint `base_source`, which gives what the file lacks; it is told of which folders
            the file has the weights. Called where a file of that family can lack anything.
        base_source: As the user typed it.

    Raises:
        CheckpointError: See `families.detect` and `flow.detect`; or no tokenizer fits.
        UsageError: A base for a file that is whole by itself.
    """
    path = path.resolve()
    tensors, metadata = read_tensors(path, allow_pickle=allow_pickle)
    extras = {"config": config, "tokenizer": tokenizer, "pickle": path.suffix in pickled.SUFFIXES}
    given = Path(config).expanduser() if config is not None else None
    if given is not None and not given.is_dir():
        raise CheckpointError(f"--config {config} is no folder.")
    found = flow.detect(tensors, source)
    if found is not None:
        from exporter.checkpoints.single_flow import open_flow

        lender = base(found.held(tensors)) if base is not None else None
        return open_flow(
            source, path, tensors, found, given=given, tokenizer=tokenizer, base=lender,
            extras={**extras, "base": base_source},
        )  # fmt: skip
    family = families.detect(tensors, source)
    if base_source is not None:
        raise UsageError(f"--base is for files of SD3 and FLUX.1; {source} is {family.name}, and whole.")
    maker = Configs(source, tensors, metadata, family, given, tokenizer)
    root = folder_of(maker.files())
    index = read_json(root / "model_index.json")
    check_folder(source, root, [name for name in index if not name.startswith("_")])
    return SingleFileCheckpoint(
        source=source,
        root=root,
        index=index,
        path=path,
        family=family,
        tensors=tensors,
        assumed=tuple(maker.assumed),
        extras=extras,
    )
