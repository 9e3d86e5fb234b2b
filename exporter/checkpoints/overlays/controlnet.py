"""ControlNets beside a checkpoint that has none: the pipeline becomes the one that follows a picture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.artifact import OverlayRecord
from exporter.checkpoints.checkpoint import SEVERAL, Checkpoint, read_json
from exporter.checkpoints.overlays.base import OVER, Overlaid, record_of
from exporter.checkpoints.safetensors_file import StoredTensor
from exporter.checkpoints.safety import check_folder
from exporter.checkpoints.small_files import as_json, folder_of, read_folder
from exporter.errors import CheckpointError

KIND = "ControlNetModel"
FAMILIES = ("StableDiffusion", "StableDiffusionXL")
TASKS = ("", "Img2Img", "Inpaint")
CONTROLLED = {
    f"{family}{task}Pipeline": f"{family}ControlNet{task}Pipeline" for family in FAMILIES for task in TASKS
}
"""Pipeline class → that of the same model with a ControlNet."""


@dataclass(frozen=True)
class Net:
    """Where a ControlNet lies: a folder of a checkpoint."""

    checkpoint: Checkpoint
    folder: str


@dataclass(frozen=True, kw_only=True)
class WithControlNets(Overlaid):
    """Attributes:
    nets: Folder here → where it lies.
    """

    nets: Mapping[str, Net] = field(repr=False, compare=False)

    def stored(self, folder: str) -> dict[str, StoredTensor]:
        net = self.nets.get(folder)
        return self.base.stored(folder) if net is None else net.checkpoint.stored(net.folder)

    def reference_stored(self, folder: str) -> dict[str, StoredTensor]:
        net = self.nets.get(folder)
        return self.base.reference_stored(folder) if net is None else net.checkpoint.stored(net.folder)

    def weight_files(self, folder: str) -> list[Path]:
        net = self.nets.get(folder)
        return self.base.weight_files(folder) if net is None else net.checkpoint.weight_files(net.folder)

    def validate(self) -> None:
        self.base.validate()
        for folder in self.nets:
            self.stored(folder)


def with_controlnets(
    checkpoint: Checkpoint, sources: Sequence[str], *, allow_pickle: bool = False
) -> WithControlNets:
    """Lay ControlNets over a checkpoint, in order; its own, if it has any, give way.

    Args:
        sources: Each a folder with the `config.json` of a `ControlNetModel`, a Hub id of such, or a whole
            checkpoint that has ControlNets (all of them are taken).

    Raises:
        CheckpointError: There is no such ControlNet, or diffusers has no pipeline of this kind with one.
            Whether it fits the UNet is the family's word (`architectures.controlnet`).
    """
    own = checkpoint.pipeline_class
    made = own if own in CONTROLLED.values() else CONTROLLED.get(own)
    if made is None:
        raise CheckpointError(
            f"{checkpoint.source} is a {own}; a ControlNet is laid over {', '.join(CONTROLLED)} only.",
            hint="Leave out --controlnet.",
        )
    found = [(source, _open(source, allow_pickle)) for source in sources]
    nets = [(source, net) for source, several in found for net in several]
    names = [f"controlnet_{n}" if n else "controlnet" for n in range(len(nets))]
    index = {**checkpoint.index, "_class_name": made}
    index["controlnet"] = ["diffusers", KIND if len(nets) == 1 else SEVERAL]
    kept = [n for n in checkpoint.component_classes if not re.match(r"controlnet(_\d+)?$", n)]
    small = read_folder(checkpoint.root, kept)
    small["model_index.json"] = as_json(index)
    for name, (_, net) in zip(names, nets, strict=True):
        small[f"{name}/config.json"] = as_json(net.checkpoint.config(net.folder))
    records = tuple(
        OverlayRecord(
            kind="controlnet",
            source=source,
            files=[
                record_of(path)
                for net in several
                for path in (
                    net.checkpoint.root / net.folder / "config.json",
                    *net.checkpoint.weight_files(net.folder),
                )
            ],
            details={OVER: own},
        )
        for source, several in found
    )
    laid = {name: net for name, (_, net) in zip(names, nets, strict=True)}
    return WithControlNets.over(checkpoint, records, root=folder_of(small), index=index, nets=laid)


def source_below(checkpoint: Checkpoint, folder: str) -> str | None:
    """Where the ControlNet of a folder was taken from, if it was laid over the checkpoint."""
    below: Checkpoint | None = checkpoint
    while below is not None:
        if isinstance(below, WithControlNets) and folder in below.nets:
            net = below.nets[folder]
            return net.checkpoint.source
        below = below.base if isinstance(below, Overlaid) else None
    return None


def _open(source: str, allow_pickle: bool) -> list[Net]:
    path = Path(source).expanduser()
    if path.is_file():
        raise CheckpointError(
            f"The ControlNet {source} is one file; this version takes it in diffusers layout only.",
            hint="Name the folder that holds its config.json and diffusion_pytorch_model.safetensors.",
        )
    if path.is_dir() and not (path / "model_index.json").is_file():
        return [_folder(source, path.resolve(), allow_pickle)]
    if path.is_dir():
        return _of_pipeline(source, allow_pickle)
    from exporter.checkpoints.hub import download, is_hub_id

    if not is_hub_id(source):
        raise CheckpointError(
            f"The ControlNet {source} is not there: it is no folder, and no `org/name` of the Hub.",
            hint="Name the folder that holds its config.json and diffusion_pytorch_model.safetensors.",
        )
    snapshot = download(source, part=True)
    if snapshot.kind == "part":
        return [_folder(source, snapshot.root, allow_pickle)]
    return _of_pipeline(source, allow_pickle)


def _of_pipeline(source: str, allow_pickle: bool) -> list[Net]:
    from exporter.checkpoints.resolve import resolve

    other = resolve(source, allow_pickle=allow_pickle)
    nets = [Net(other, n) for n, (_, kind) in other.component_classes.items() if kind == KIND]
    if not nets:
        raise CheckpointError(f"{source} is a {other.pipeline_class} without a ControlNet.")
    return nets


def _folder(source: str, path: Path, allow_pickle: bool) -> Net:
    config = path / "config.json"
    if not config.is_file():
        raise CheckpointError(
            f"{source} has neither a config.json nor a model_index.json, so there is no ControlNet to take."
        )
    kind: Any = read_json(config).get("_class_name")
    if kind != KIND:
        raise CheckpointError(
            f"{source} is a {kind}, not a {KIND}.",
            hint="Union, XS and sparse ControlNets are other models, which this version does not convert.",
        )
    check_folder(source, path, ["."])
    checkpoint = Checkpoint(source=source, root=path.parent, index={}, allow_pickle=allow_pickle)
    checkpoint.stored(path.name)
    return Net(checkpoint, path.name)
