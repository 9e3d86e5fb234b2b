"""What a source does not hold, said before any work: a file of a transformer alone is half a pipeline."""

from __future__ import annotations

from collections.abc import Sequence

from exporter.checkpoints.checkpoint import Checkpoint
from exporter.errors import CheckpointError

HALVES = {"vae_decoder": "vae", "vae_encoder": "vae"}
"""Components that are not called as their folder."""


def check_whole(checkpoint: Checkpoint, components: Sequence[str] | None = None) -> None:
    """The parts that are wanted are there.

    Args:
        components: By name; None or none means the whole pipeline.

    Raises:
        CheckpointError: Naming what is missing, and what to give.
    """
    lacking = checkpoint.lacking
    missing = [n for n in lacking if not components or n in {HALVES.get(c, c) for c in components}]
    if not missing:
        return
    there = [
        name for name in checkpoint.component_classes if (checkpoint.root / name / "config.json").is_file()
    ]
    raise CheckpointError(
        f"{checkpoint.source} holds {', '.join(there)} and lacks "
        f"{', '.join(f'{name} ({lacking[name]})' for name in missing)}.",
        hint=checkpoint.advice,
    )
