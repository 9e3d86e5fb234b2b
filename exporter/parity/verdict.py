"""From raw measurements to PASS, FAIL or INCONCLUSIVE. Runs nothing, so it can be asked again.

The rule for one output of one case: `error <= k * floor`, for the relative L2 error and for the
largest absolute error. The floor is the error of PyTorch itself, at the artifact's precision,
against the same float64 truth (the larger of its two memory layouts), but never less than

- the median floor over the component's cases (a case may be lucky), and
- what rounding the truth to the output's dtype costs (unit roundoff).

Every comparison is written so that NaN fails. What was not measured is never a PASS.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from exporter.artifact import Verdict
from exporter.errors import UsageError
from exporter.parity import cost
from exporter.parity.decided import decided_otherwise, judge_decisions, typical_noise
from exporter.parity.schema import (
    Case,
    ComponentReport,
    Judged,
    Metrics,
    OutputMeasurement,
    Painting,
    PipelineReport,
    PipelineRun,
    Report,
    Run,
    Worst,
)
from exporter.parity.stated import (
    below,
    judge_compression,
    judge_pictures,
    number,
    of_component,
    of_report,
    stated,
)

METRICS: tuple[Judged, ...] = ("relative_l2", "max_abs")
CHAOS = 0.25
"""Relative divergence of the PyTorch twin beyond which a trajectory says nothing about the artifact."""


def judge(report: Report, k: float, min_sqnr: float | None = None, min_psnr: float | None = None) -> Report:
    """The same measurements judged with `k`: a new report.

    Args:
        min_sqnr / min_psnr: Of quantised artifacts, in dB; None is the scheme's default (`STATED`).

    Raises:
        UsageError: `k` is not a positive number, or a limit in dB is not finite.
    """
    for name, limit in (("SQNR", min_sqnr), ("PSNR", min_psnr)):
        if limit is not None and not math.isfinite(limit):
            raise UsageError(f"The least {name} must be a number of dB, not {limit}.")
    if not (k > 0 and math.isfinite(k)):
        raise UsageError(f"k must be a positive number, not {k}.")
    judged = report.model_copy(deep=True)
    judged.settings.k = k
    judged.settings.min_sqnr, judged.settings.min_psnr = min_sqnr, min_psnr
    for component in judged.components:
        judge_component(component, k, min_sqnr)
    if judged.pipeline is not None:
        judge_pipeline(judged.pipeline, k, min_psnr)
    parts: list[Verdict] = [c.verdict for c in judged.components]
    if judged.pipeline is not None:
        parts.append(judged.pipeline.verdict)
    parts += [size.verdict for size in judged.sizes]
    judged.verdict = combine(parts)
    judged.summary = summarise(judged)
    return judged


def rejudge(
    report_path: Path | str, *, k: float, min_sqnr: float | None = None, min_psnr: float | None = None
) -> Report:
    """Judge a stored report again, with other limits, running nothing.

    Raises:
        ArtifactError: No such report, or one this version cannot read.
        UsageError: `k` is not a positive number.
    """
    from exporter.parity.sizes import judged_again

    report = Report.load(report_path)
    file = Path(report_path).expanduser()
    folder = file if file.is_dir() else file.parent
    report.sizes = [judged_again(folder, size, k, min_sqnr, min_psnr) for size in report.sizes]
    return judge(report, k, min_sqnr, min_psnr)


def combine(verdicts: Iterable[Verdict]) -> Verdict:
    """FAIL if any failed; PASS only if there is at least one and all passed; else INCONCLUSIVE."""
    found = list(verdicts)
    if "FAIL" in found:
        return "FAIL"
    return "PASS" if found and all(v == "PASS" for v in found) else "INCONCLUSIVE"


def judge_component(component: ComponentReport, k: float, min_sqnr: float | None = None) -> None:
    """Set `verdict`, `reasons` and `worst` of one component."""
    failures = list(component.problems) + judge_compression(component, min_sqnr)
    open_questions = [component.not_checked] if component.not_checked else []
    worst_by_mode = []
    warnings: list[str] = []
    for run in component.runs:
        problems, excesses, unsure, worst = judge_run(run, k)
        run.worst = worst
        if run.stated:
            excesses, worst, run.worst = below(run, component.compression), None, None
        measured = bool(worst) or run.stated
        run.verdict = (
            "FAIL" if problems or excesses else "PASS" if measured and not unsure else "INCONCLUSIVE"
        )
        if run.stated:
            excesses = []  # they are among those of the compression
        failures += problems
        (failures if run.gates else warnings).extend(excesses)
        open_questions += unsure
        if worst is not None:
            worst_by_mode.append(worst)
    if not any(run.mode == "graph" and run.cases for run in component.runs):
        open_questions.append("nothing was run")
    component.worst_by_mode = worst_by_mode
    gating = [run.worst for run in component.runs if run.gates and run.worst is not None]
    component.worst = max(gating, key=lambda w: _key(w.ratio), default=None)
    component.warnings = warnings
    component.reasons = failures + open_questions
    component.verdict = "FAIL" if failures else "INCONCLUSIVE" if open_questions else "PASS"
    component.summary = _component_sentence(component, k)


def _component_sentence(component: ComponentReport, k: float) -> str:
    if component.verdict != "PASS" or component.worst is None:
        return component.reasons[0] if component.reasons else "nothing was measured"
    parts = []
    for worst in component.worst_by_mode:
        run = next(r for r in component.runs if r.mode == worst.mode)
        how = "" if worst.mode == "graph" else f" run by default in {run.arithmetic}"
        excess = "" if run.gates or worst.ratio <= 1 else ", more than its precision explains"
        parts.append(f"{worst.ratio * k:.2g} × the {run.arithmetic} noise floor{how}{excess}")
    return (
        f"error at most {', '.join(parts)} ({k:g} is allowed){of_component(component.compression)}"
        f"{decided_otherwise(component)}"
    )


def judge_run(run: Run, k: float) -> tuple[list[str], list[str], list[str], Worst | None]:
    """Structural faults, excesses, open questions, and the measurement with the largest error ÷ limit."""
    failures: list[str] = []
    excesses: list[str] = []
    unsure: list[str] = []
    worst: Worst | None = None
    typical = typical_floors(run)
    noise_of_decisions = typical_noise(run)
    where = "" if run.mode == "graph" else f" ({run.mode} precision, {run.arithmetic})"
    failures += run.problems
    for case in run.cases:
        failures += [f"{case.label}{where}: {problem}" for problem in case.problems]
        if case.not_checked:
            unsure.append(f"{case.label}{where}: {case.not_checked}")
        elif not case.outputs and not case.problems:
            unsure.append(f"{case.label}{where}: no output was measured")
        excesses += judge_decisions(case, noise_of_decisions, where, k)
        for output in case.outputs:
            for metric in METRICS:
                found = judge_metric(run, case, output, metric, typical, k)
                if not (found.value <= found.limit) or not math.isfinite(found.limit):
                    excesses.append(_sentence(found, case, where, k))
                if worst is None or _key(found.ratio) > _key(worst.ratio):
                    worst = found
    return failures, excesses, unsure, worst


def judge_metric(
    run: Run, case: Case, output: OutputMeasurement, metric: Judged, typical: dict, k: float
) -> Worst:
    """One metric of one output with its limit."""
    value = getattr(output.artifact, metric)
    floor = max(
        output.noise(metric),
        typical.get((output.name, metric), 0.0),
        least_floor(output.artifact, metric, output.unit),
    )
    limit = k * floor
    ratio = value / limit if limit > 0 else (0.0 if value == 0 else math.inf)
    return Worst(
        mode=run.mode, case=case.id, output=output.name, metric=metric, value=value, floor=floor,
        limit=limit, ratio=ratio, index=output.artifact.worst_index,
    )  # fmt: skip


def least_floor(metrics: Metrics, metric: Judged, unit: float) -> float:
    """What rounding the truth itself to the output's dtype may cost: `unit` relative to the value."""
    return unit * metrics.truth_max if metric == "max_abs" else unit


def typical_floors(run: Run) -> dict[tuple[str, str], float]:
    """Median floor over the cases of a run, by output and metric.

    For `max_abs` the cases' own scales differ little (all come from one trajectory).
    """
    values: dict[tuple[str, str], list[float]] = {}
    for case in run.cases:
        for output in case.outputs:
            for metric in METRICS:
                value = output.noise(metric)
                if math.isfinite(value):
                    values.setdefault((output.name, metric), []).append(value)
    return {key: median(found) for key, found in values.items()}


def judge_pipeline(pipeline: PipelineReport, k: float, min_psnr: float | None = None) -> None:
    """Set `verdict` and `reasons` of the whole pipeline.

    After every step the artifact may be at most `k` times as far from the reference as the twin: a
    second PyTorch run that differs from the reference only by rounding. Where the twin itself has
    left the reference, the trajectory is chaotic from there on: that part is noted and not judged,
    and when not even the first step can be judged the verdict is INCONCLUSIVE.
    """
    notes: list[str] = []
    failures: list[str] = []
    unsure = [pipeline.not_checked] if pipeline.not_checked else []
    for run in pipeline.runs:
        failed, open_questions, remarks = _judge_paintings(run, k)
        if run.gates or run.problems:
            failures += failed
            unsure += open_questions
        else:
            remarks = failed + open_questions + remarks
        notes += remarks
    if pipeline.scheme is not None:
        pipeline.min_psnr = stated(pipeline.scheme, 1) if min_psnr is None else min_psnr
        failures += judge_pictures(pipeline, pipeline.min_psnr)
    if not any(run.paintings for run in pipeline.runs) and not unsure and not failures:
        unsure.append("no picture was painted")
    price = cost.cost_of(pipeline)
    pipeline.notes = [*notes, price] if price else notes
    pipeline.reasons = failures + unsure
    pipeline.verdict = "FAIL" if failures else "INCONCLUSIVE" if unsure else "PASS"


def _judge_paintings(run: PipelineRun, k: float) -> tuple[list[str], list[str], list[str]]:
    """Failures, open questions and remarks of one run."""
    where = "" if run.mode == "graph" else f" ({run.mode} precision, {run.arithmetic})"
    failures = [f"pipeline{where}: {problem}" for problem in run.problems]
    unsure = [f"pipeline{where}: {run.not_checked}"] if run.not_checked else []
    notes: list[str] = []
    painted = not (run.problems or run.not_checked or run.stated)
    for painting in run.paintings if painted else ():
        what = f"{painting.prompt!r}{where}"
        failure, chaotic = _judge_trajectory(painting, what, k)
        if failure:
            failures.append(failure)
        elif chaotic == 0:
            unsure.append(f"{what}: two PyTorch runs that differ by rounding part in the first step")
        elif chaotic is not None:
            notes.append(
                f"{what}: two PyTorch runs that differ by rounding are more than {CHAOS:g} apart after step "
                f"{chaotic + 1}; what follows says nothing about the artifact and is not judged"
            )
        else:
            twin = painting.twin_image_error
            limit = k * max(twin, 1e-7) if twin is not None else math.nan
            if painting.image_error is None or not (painting.image_error <= limit):
                failures.append(
                    f"{what}: the picture is {number(painting.image_error)} (RMS of [0, 1]) from the "
                    f"reference; {limit:.3g} is allowed"
                )
    return failures, unsure, notes


def _judge_trajectory(painting: Painting, what: str, k: float) -> tuple[str | None, int | None]:
    """The first failure, and the index of the first chaotic step, if any."""
    if not painting.steps:
        return f"{what}: no step was measured", None
    reached = 0.0
    for index, step in enumerate(painting.steps):
        reached = max(reached, step.twin)
        if not (reached <= CHAOS):
            return None, index
        if step.artifact is None or not (step.artifact <= k * reached):
            return (
                f"{what}: after step {step.step} the latents are {number(step.artifact)} from the "
                f"reference; {k:g} × the twin's {reached:.3g} is allowed"
            ), None
    return None, None


def summarise(report: Report) -> str:
    """The verdict in one sentence."""
    k = report.settings.k
    count = len(report.components)
    names = ", ".join(c.name for c in report.components)
    if report.verdict == "PASS":
        worst = max((c.worst for c in report.components if c.worst), key=lambda w: _key(w.ratio))
        picture = ""
        if report.pipeline is not None:
            picture = " and the pictures they paint together follow the reference"
        return (
            f"{'All ' if count > 1 else ''}{count} component{'s' if count > 1 else ''} ({names}) "
            f"compute what PyTorch computes: the largest error is {worst.ratio * k:.2g} times PyTorch's own "
            f"rounding noise ({k:g} is allowed){picture}.{_sizes(report)}{of_report(report)}"
            f"{cost.of_report(report)}{_warning(report)}"
        )
    parts = [(c.name, c) for c in report.components] + [("pipeline", report.pipeline)]
    guilty = [(n, p) for n, p in parts if p is not None and p.verdict == report.verdict]
    for size in report.sizes if not guilty else ():
        if size.verdict == report.verdict:
            return f"at {size.static}: {size.summary}"
    if not guilty:
        return "there was nothing to check"
    name, part = guilty[0]
    reason = part.reasons[0] if part.reasons else "no reason was recorded"
    more = f" ({len(guilty) - 1} more: {', '.join(n for n, _ in guilty[1:])})" if len(guilty) > 1 else ""
    text = f"{name}: {reason}{more}."
    if isinstance(part, ComponentReport) and part.bisection is not None and part.bisection.first_bad:
        text += f" First bad module: {part.bisection.first_bad}."
    return text


def _sizes(report: Report) -> str:
    """The sizes that were judged besides the first."""
    if not report.sizes:
        return ""
    return f" So it is at {', '.join(size.static for size in report.sizes)}."


def _warning(report: Report) -> str:
    """What does not decide the verdict but must not be missed."""
    warned = [c.name for c in report.components if c.warnings]
    if not warned:
        return ""
    run = next(r for c in report.components for r in c.runs if not r.gates)
    return (
        f" Run at the runtime's own default ({run.arithmetic}) instead of the precision in the manifest, "
        f"{', '.join(warned)} would be further off than that precision explains."
    )


def _sentence(found: Worst, case: Case, where: str, k: float) -> str:
    name = "relative L2 error" if found.metric == "relative_l2" else "largest absolute error"
    at = f" at {found.index}" if found.metric == "max_abs" else ""
    return (
        f"{case.label}{where}: {name} of {found.output}{at} is {found.value:.3g}, "
        f"{number(found.ratio)} times the limit {found.limit:.3g} "
        f"({k:g} × the noise floor {found.floor:.3g})"
    )


def _key(ratio: float) -> float:
    """NaN counts as worse than anything."""
    return math.inf if math.isnan(ratio) else ratio
