"""What a technique that an artifact carries does to the pictures: the plain model's beside them.

The verdict is about the export: the artifact against PyTorch with the same technique. What the technique
itself loses is measured and said, and no part of the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exporter.checkpoints import Checkpoint
    from exporter.parity.painting import Painted
    from exporter.parity.schema import PipelineReport, Report


def plain_of(
    checkpoint: Checkpoint, report: PipelineReport, paint: Callable[[Checkpoint], Painted | None]
) -> Painted | None:
    """Note the techniques in the report, and what the model paints without them.

    Args:
        paint: The reference's run of a checkpoint.

    Returns:
        None where there is no technique, or none that changes what is computed.
    """
    from exporter.architectures.baked import IN_THE_RUNNER
    from exporter.techniques import described, kind

    baked = [(name, options) for name, options in checkpoint.techniques if name not in IN_THE_RUNNER]
    report.techniques = [described(name, options) for name, options in baked]
    if all(kind(name).effect != "lossy" for name, _ in baked):
        return None
    return paint(checkpoint.exported_with(()))


def cost_of(pipeline: PipelineReport | None) -> str | None:
    """In one sentence what the techniques change, None where there are none."""
    if pipeline is None or not pipeline.techniques:
        return None
    names = "; ".join(pipeline.techniques)
    found = [painting.plain_psnr_db for run in pipeline.runs for painting in run.paintings]
    if not any("lossy" in each for each in pipeline.techniques):
        return f"Technique: {names}; the reference is the model without it"
    if not found or any(each is None for each in found):
        return f"Technique: {names}; what it changes could not be measured"
    values = [each for each in found if each is not None]
    least, most = min(values), max(values)
    apart = f"{least:.1f}" if math.isclose(least, most, abs_tol=0.05) else f"{least:.1f} to {most:.1f}"
    return f"Technique: {names}; its pictures are {apart} dB (PSNR) from those of the model without it"


def of_report(report: Report) -> str:
    """For the verdict's summary."""
    sentence = cost_of(report.pipeline)
    return f" {sentence}." if sentence else ""
