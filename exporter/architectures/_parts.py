"""Whether a checkpoint has the parts that a family needs, and how they are wrapped."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from exporter.checkpoints import Checkpoint
from exporter.errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn


def adapter(name: str, *, room: str = "_adapters", **settings: Any) -> Callable[[nn.Module], nn.Module]:
    """A class of `_adapters`, or of another module here, with these settings; PyTorch is loaded when it is
    called."""

    def adapt(inner: nn.Module) -> nn.Module:
        module = import_module(f"exporter.architectures.{room}")
        made: nn.Module = getattr(module, name)(inner, **settings)
        return made

    return adapt


def expect_class(checkpoint: Checkpoint, folder: str, known: tuple[str, ...]) -> str:
    """The class of a part as `model_index.json` names it.

    Raises:
        CheckpointError: There is no such part, or it is of a class the family does not know.
    """
    found = checkpoint.component_classes.get(folder)
    wanted = " or ".join(known)
    if found is None:
        raise CheckpointError(
            f"{checkpoint.source} is a {checkpoint.pipeline_class} without a {folder}: model_index.json has "
            f"none, the family needs one ({wanted}).",
            hint="Add the part to the folder and to model_index.json, or convert another copy of the model.",
        )
    if found[1] not in known:
        raise CheckpointError(
            f"{checkpoint.source}: {folder} is a {found[1]}; a {checkpoint.pipeline_class} is converted with "
            f"{wanted} only."
        )
    return found[1]


def part_config(checkpoint: Checkpoint, folder: str) -> dict[str, Any]:
    """The config of a part, or what is known of it where a source may lack it."""
    if folder in checkpoint.lacking:
        return dict(checkpoint.expected(folder))
    return checkpoint.config(folder)
