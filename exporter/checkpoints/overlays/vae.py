"""Another autoencoder in the place of the checkpoint's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.artifact import FileRecord, OverlayRecord
from exporter.checkpoints.checkpoint import Checkpoint, read_json
from exporter.checkpoints.derived import held
from exporter.checkpoints.original import flow, vae
from exporter.checkpoints.overlays.base import Overlaid, record_of
from exporter.checkpoints.safetensors_file import StoredTensor
from exporter.checkpoints.safety import check_folder
from exporter.checkpoints.single_configs import part
from exporter.checkpoints.single_file import read_tensors
from exporter.checkpoints.small_files import as_json, folder_of, read_folder
from exporter.errors import CheckpointError

SCALING = ("scaling_factor", "shift_factor")
KINDS = ("AutoencoderKL", "AutoencoderTiny")
"""Classes that can stand in a model's place for its own; whether a family takes it is the family's word."""


@dataclass(frozen=True)
class Autoencoder:
    """An autoencoder from somewhere: its class and config, its tensors for the export and the reference."""

    kind: str
    config: Mapping[str, Any]
    files: tuple[Path, ...]
    stored: Callable[[], dict[str, StoredTensor]]
    reference: Callable[[], dict[str, StoredTensor]]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WithVae(Overlaid):
    """Attributes:
    vae: The autoencoder that counts.
    """

    vae: Autoencoder = field(repr=False, compare=False)

    @property
    def lacking(self) -> Mapping[str, str]:
        return {folder: words for folder, words in self.base.lacking.items() if folder != "vae"}

    def stored(self, folder: str) -> dict[str, StoredTensor]:
        return self.vae.stored() if folder == "vae" else self.base.stored(folder)

    def reference_stored(self, folder: str) -> dict[str, StoredTensor]:
        return self.vae.reference() if folder == "vae" else self.base.reference_stored(folder)

    def weight_files(self, folder: str) -> list[Path]:
        return list(self.vae.files) if folder == "vae" else self.base.weight_files(folder)

    def validate(self) -> None:
        self.base.validate()
        self.vae.stored()


def with_vae(checkpoint: Checkpoint, source: str, *, allow_pickle: bool = False) -> WithVae:
    """Put the autoencoder at `source` in the place of the checkpoint's.

    Args:
        source: A folder with the `config.json` of one of `KINDS`; a whole checkpoint (folder, one
            file, Hub id); or an autoencoder alone in one file.

    Raises:
        CheckpointError: There is no such autoencoder, or its latents have other channels or another scale.
    """
    there = "vae" in checkpoint.component_classes
    own = checkpoint.config("vae") if there else checkpoint.expected("vae")
    if not own:
        raise CheckpointError(f"{checkpoint.source} has no autoencoder that --vae could replace.")
    found = _open(source, own, allow_pickle)
    channels, wanted = found.config.get("latent_channels"), own.get("latent_channels")
    if channels != wanted:
        raise CheckpointError(
            f"The autoencoder {source} has {channels} latent channels, the model works with {wanted}.",
            hint="It belongs to another model family.",
        )
    factors = [_levels(config) for config in (found.config, own)]
    if factors[0] != factors[1]:
        raise CheckpointError(
            f"The autoencoder {source} makes one latent of {factors[0]}×{factors[0]} pixels, the model works "
            f"with {factors[1]}×{factors[1]}.",
            hint="It belongs to another model family.",
        )
    index = {**checkpoint.index, "vae": ["diffusers", found.kind]}
    small = read_folder(checkpoint.root, list(checkpoint.component_classes))
    small["model_index.json"] = as_json(index)
    small["vae/config.json"] = as_json(dict(found.config))
    files: list[FileRecord] = [record_of(path) for path in found.files]
    record = OverlayRecord(
        kind="vae", source=source, files=files, details={k: found.config.get(k) for k in SCALING}
    )
    return WithVae.over(
        checkpoint, (record,), root=folder_of(small), index=index, vae=found, remarks=found.remarks
    )


def _levels(config: Mapping[str, Any]) -> int:
    blocks = config.get("block_out_channels") or config.get("decoder_block_out_channels") or [0]
    return int(2 ** (len(blocks) - 1))


def _open(source: str, own: Mapping[str, Any], allow_pickle: bool) -> Autoencoder:
    path = Path(source).expanduser()
    if path.is_file():
        tensors, _ = read_tensors(path, allow_pickle=allow_pickle)
        prefix = next((p for p in flow.VAES if any(n.startswith(p) for n in tensors)), "")
        inner = part(tensors, prefix)
        if vae.is_original(inner):
            return _original(path, inner, own)
        if (path.parent / "config.json").is_file():
            return _folder(source, path.parent, allow_pickle)
        raise CheckpointError(
            f"{source} holds no autoencoder in its authors' layout, and no config.json lies beside it.",
            hint="Name the folder with config.json and the weights instead.",
        )
    if path.is_dir() and not (path / "model_index.json").is_file():
        return _folder(source, path, allow_pickle)
    from exporter.checkpoints.resolve import resolve

    other = resolve(source, allow_pickle=allow_pickle)
    if "vae" not in other.component_classes:
        raise CheckpointError(f"{source} has no autoencoder.")
    return _of(other, "vae", other.component_classes["vae"][1])


def _folder(source: str, path: Path, allow_pickle: bool) -> Autoencoder:
    config = path / "config.json"
    if not config.is_file():
        raise CheckpointError(
            f"{source} has neither a config.json nor a model_index.json, so there is no autoencoder to take."
        )
    kind = read_json(config).get("_class_name")
    if kind not in KINDS:
        raise CheckpointError(f"{source} is a {kind}, not an {' or '.join(KINDS)}.")
    path = path.resolve()
    check_folder(source, path.parent, [path.name])
    inner = Checkpoint(source=source, root=path.parent, index={}, allow_pickle=allow_pickle)
    return _of(inner, path.name, kind)


def _of(checkpoint: Checkpoint, folder: str, kind: str) -> Autoencoder:
    checkpoint.stored(folder)
    return Autoencoder(
        kind,
        checkpoint.config(folder),
        tuple(checkpoint.weight_files(folder)),
        lambda: checkpoint.stored(folder),
        lambda: checkpoint.reference_stored(folder),
    )


def _original(path: Path, tensors: Mapping[str, StoredTensor], own: Mapping[str, Any]) -> Autoencoder:
    scaling = {key: own[key] for key in SCALING if own.get(key) is not None}
    config = vae.infer(tensors, sample_size=int(own.get("sample_size") or 512), scaling=scaling)
    stored = vae.weights(tensors, config)

    def reference() -> dict[str, StoredTensor]:
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

        loaded = {name: tensor.load() for name, tensor in tensors.items()}
        return {n: held(n, t, path) for n, t in convert_ldm_vae_checkpoint(loaded, config=config).items()}

    remark = (
        f"vae: scaling {scaling.get('scaling_factor')} is that of the model's own autoencoder, and "
        f"{config['norm_num_groups']} groups a normalisation were assumed; {path.name} does not say"
    )
    return Autoencoder("AutoencoderKL", config, (path,), lambda: stored, reference, (remark,))
