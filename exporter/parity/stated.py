"""Stated limits: what quantised weights may cost, and how their verdict is worded.

No noise floor explains the rounding of weights to integers, so how far an output or a picture may be from the
unquantised model's is nobody's proof but a statement. What can be proven of a quantised artifact is judged as
ever, with the weights as quantised; see `quantised.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from exporter.parity.parts import Compression
from exporter.parity.schema import ComponentReport, PipelineReport, Report, Run

STATED = {
    "int8": (25.0, 25.0),
    "int8_activations": (10.0, 20.0),
    "int4": (12.0, 20.0),
    "int4_narrow": (5.0, 15.0),
    "palette8": (18.0, 20.0),
    "palette6": (12.0, 18.0),
    "palette4": (5.0, 12.0),
    "palette2": (3.0, 8.0),
    "palette1": (3.0, 8.0),
}
"""Quantised weights by bits: least SQNR of an output and least PSNR of a picture, in dB, both against the
unquantised model. How they were found is in the README of this folder. Of mixed palettes it is the limit of
the palette with the most bits that is no better than their average. None is below 3 dB: where the error has
half the power of the output, nobody would call it the same model, whatever the scheme usually costs."""
MIXED = "palette-mixed"
LEVELS = 256
"""Of activations in int8."""
NEAREST = 0.501
"""Steps a quantised weight may be from the checkpoint's: one half is rounding to nearest, the rest is the
rounding of this comparison in float32."""
RANGE = 0.1
"""Steps an end of a range of activations may be from where calibration puts it: what measures the range is
another runtime than PyTorch."""
FINEST = 1.01
"""Times the scheme's own step: scales may be stored as float16."""


def judge_compression(component: ComponentReport, min_sqnr: float | None) -> list[str]:
    """Failures of quantised weights (nearest code) and of outputs (stated limit); sets the figures."""
    compression = component.compression
    if compression is None:
        return []
    failures = []
    for weight in compression.weights:
        if not (weight.steps <= NEAREST):
            failures.append(
                f"the quantised weight {weight.name} is {number(weight.steps)} steps from the checkpoint's "
                f"at {weight.index}; the nearest code would be at most half a step away"
            )
        elif not (weight.coarseness <= FINEST):
            failures.append(
                f"the steps of the quantised weight {weight.name} are {number(weight.coarseness)} times as "
                f"coarse as {weight.how} needs"
            )
    for each in compression.activations:
        if not (each.steps <= RANGE) or each.levels != LEVELS:
            failures.append(
                f"what enters {each.name} is rounded to {each.levels} numbers from {number(each.low)} to "
                f"{number(each.high)}; its calibration gives {LEVELS} from {number(each.wanted[0])} to "
                f"{number(each.wanted[1])}"
            )
    limit = stated(compression.scheme, 0) if min_sqnr is None else min_sqnr
    compression.min_sqnr, compression.sqnr_db = limit, None
    for run in (run for run in component.runs if run.gates):
        for found in kept(run):
            if compression.sqnr_db is None or not (found[2] >= compression.sqnr_db):
                compression.sqnr_db = found[2]
        failures += below(run, compression)
    return failures


def kept(run: Run) -> list[tuple[str, str, float]]:
    """Case, output and SQNR in dB against the unquantised model; NaN where there is none."""
    return [
        (case.label, output.name, output.original.sqnr_db if output.original is not None else math.nan)
        for case in run.cases
        for output in case.outputs
    ]


def below(run: Run, compression: Compression | None) -> list[str]:
    """Outputs of a run that keep less than the stated limit."""
    limit = math.nan if compression is None or compression.min_sqnr is None else compression.min_sqnr
    how = "activations in int8" if run.stated else f"{run.mode} precision"
    return [
        f"{case} ({how}): {output} has an SQNR of {number(found)} dB against the unquantised model; the "
        f"stated limit is {limit:g} dB"
        for case, output, found in kept(run)
        if not (found >= limit)
    ]


def stated(scheme: str, which: int) -> float:
    """The default limit of a scheme: 0 SQNR, 1 PSNR. An unknown scheme has the strictest."""
    if scheme.startswith(MIXED):
        average = float(scheme.removeprefix(MIXED))
        bits = max(b for b in (1, 2, 4, 6, 8) if b <= max(average, 1))
        return STATED[f"palette{bits}"][which]
    return STATED.get(scheme, STATED.get(scheme[:4], STATED["int8"]))[which]


def judge_pictures(pipeline: PipelineReport, limit: float) -> list[str]:
    """Pictures of a quantised artifact that are further from the unquantised model's than is stated."""
    return [
        f"{painting.prompt!r} ({run.mode} precision): the picture has a PSNR of "
        f"{number(painting.original_psnr_db)} dB against the unquantised model's; "
        f"the stated limit is {limit:g} dB"
        for run in pipeline.runs
        for painting in (run.paintings if run.gates and not (run.problems or run.not_checked) else ())
        if painting.original_psnr_db is None or not (painting.original_psnr_db >= limit)
    ]


def of_component(compression: Compression | None) -> str:
    """The part of a component's sentence that is about its quantised weights."""
    if compression is None or compression.sqnr_db is None:
        return ""
    effect = f"{compression.sqnr_db:.1f} dB from the unquantised model"
    limit = f"({compression.scheme}; a stated limit of {compression.min_sqnr:g} dB)"
    rounded = calibrated([compression])
    return f" with the weights as quantised; {effect} {limit}{f'; {rounded}' if rounded else ''}"


def calibrated(parts: Sequence[Compression]) -> str:
    """`activations in int8, calibrated on 32 captured inputs`; empty where they are left as they are."""
    counts = sorted({part.calibrated_on for part in parts if part.calibrated_on is not None})
    if not counts:
        return ""
    count = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"activations in int8, calibrated on {count} captured inputs"


def of_report(report: Report) -> str:
    """What holds for a quantised artifact by statement and not by proof."""
    parts = [c.compression for c in report.components if c.compression is not None]
    if not parts:
        return ""
    worst = min(parts, key=lambda c: math.inf if c.sqnr_db is None else c.sqnr_db)
    text = (
        f" Their weights are quantised ({worst.scheme}): outputs keep {worst.sqnr_db:.1f} dB of the "
        f"unquantised model's, where {worst.min_sqnr:g} dB is a stated limit, not an earned one"
    )
    if report.pipeline is not None and report.pipeline.min_psnr is not None:
        found = [p.original_psnr_db for r in report.pipeline.runs if r.gates for p in r.paintings]
        psnr = min((x for x in found if x is not None), default=math.nan)
        text += f"; pictures keep {psnr:.1f} dB PSNR ({report.pipeline.min_psnr:g} dB stated)"
    rounded = calibrated(parts)
    return f"{text}; {rounded}." if rounded else f"{text}."


def number(value: float | None) -> str:
    """For a sentence; NaN is said as it is."""
    return "not measurable" if value is None else f"{value:.3g}"
