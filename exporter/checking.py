"""What the plan, the manifest and the model card say of a checkpoint's safety checker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from exporter.architectures.safety_checker import NAME, left_out

if TYPE_CHECKING:
    from exporter.architectures import Component
    from exporter.checkpoints import Checkpoint
    from exporter.targets import Target

SHOWN = "whatever paints with the artifact shows every picture"


def told(
    checkpoint: Checkpoint, available: Sequence[Component], chosen: Sequence[Component], target: Target
) -> list[str]:
    """Where the checker is left out, or looks at the pictures of some clients only: one sentence.

    Args:
        available: The checkpoint's components.
        chosen: Those to be converted.
    """
    if NAME not in checkpoint.component_classes:
        return []
    names = {component.name for component in chosen}
    there = {component.name for component in available}
    if NAME in names:
        return [target.checked] if target.checked is not None else []
    if NAME in there:
        return [f"The safety checker is left out, as asked: {SHOWN}"] if "vae_decoder" in names else []
    if target.keeps_others:
        return []
    why = left_out(checkpoint) or f"is beside a {checkpoint.pipeline_class}, which is converted without it"
    return [f"The checkpoint's safety checker {why}, so it is left out: {SHOWN}"]
