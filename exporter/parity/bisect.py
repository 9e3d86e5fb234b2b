"""Names the first module of a failing component whose output is off while its inputs are not.

Every module is judged like the whole: error against float64 ≤ k × PyTorch's own noise *at that
module*. Modules are taken in the order in which they finish, so the first bad one has only good ones
before it. A module's input may be computed by its parent's own code (attention, an activation);
`provenance.py` tells, and then the parent is named, because the format shows no value in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from exporter.architectures.baked.deciding import is_decision
from exporter.parity.arithmetic import UNIT_ROUNDOFF, Reference, Tensors
from exporter.parity.budget import layouts_of
from exporter.parity.cases import Inputs, convert_inputs
from exporter.parity.decisions import untold
from exporter.parity.metrics import NotComparable, compare
from exporter.parity.provenance import Trace, trace
from exporter.parity.schema import Bisection, Case, ComponentReport, ModuleRow, Report, Run

if TYPE_CHECKING:
    from exporter.architectures.base import Component
    from exporter.parity.measure import Opened

ROUND_BYTES = 256 << 20
"""float64 outputs held at a time; more modules than fit are narrowed down over several rounds."""
AROUND = 6
SUSTAINED = 6
"""A slight excess may be noise: at least half of this many following modules must be off as well."""
PLAIN = 10.0
"""Error ÷ limit beyond which no company is needed (a normalisation may hide a fault from what follows)."""

OTHERWISE = (
    "With its inner values shown, the runtime rounds in another way, and the file merges other tokens: what "
    "follows from that cannot be told from the fault."
)


def bisect(
    component: Component,
    opened: Opened,
    report: ComponentReport,
    cases: Sequence[Inputs],
    k: float,
    tick: Callable[[str], None] = lambda text: None,
    mode: str = "graph",
) -> Bisection | None:
    """Follow the failing case with the largest excess.

    Args:
        opened: How the artifact is opened for the run that failed.
        mode: Of that run.

    Returns:
        None when no case can be followed (every failing one is structural and none ran).
    """
    chosen = _worst_case(report, k, mode)
    if chosen is None:
        return None
    case = next(c for c in cases if c.id == chosen.id)
    held = next(run.truth for run in report.runs if run.mode == mode)
    with opened() as runner:
        names = runner.module_names()
        if not names:
            return Bisection(
                case=case.id, first_bad=None, explanation="This format gives no intermediate outputs."
            )
        arrays, _ = convert_inputs(untold(case), opened.record.inputs)
        decided = [name for name in case.tensors if is_decision(name)]
        with Reference(component) as reference:
            known = trace(reference, case.tensors)
        names = [name for name in known.order if name in set(names)]
        rows: dict[str, ModuleRow] = {}
        wanted = names
        while picked := _pick(wanted, rows, known):
            truth = _outputs(component, case, picked, held, "float64")
            floors = [
                _outputs(component, case, picked, opened.weights, opened.arithmetic, layout)
                for layout in layouts_of(component)
            ]
            values = runner.intermediates(arrays, [*picked, *decided])
            if any(not torch.equal(torch.from_numpy(values[n]).long(), case.tensors[n]) for n in decided):
                return Bisection(case=case.id, first_bad=None, explanation=OTHERWISE)
            for name in picked:
                actual = torch.from_numpy(values[name]) if name in values else None
                noise = [floor[name] for floor in floors if name in floor]
                rows[name] = _row(name, truth.get(name), noise, actual, opened.arithmetic, k)
            tick(f"{len(rows)} of {len(names)} modules compared")
            wanted = _narrow(names, rows, known)
    return _conclude(case.id, [n for n in names if n in rows], rows, known)


def _worst_case(report: ComponentReport, k: float, mode: str) -> Case | None:
    """The case of a run with the largest error ÷ limit; one with only NaN comes first."""
    from exporter.parity.verdict import METRICS, judge_metric, typical_floors

    best: tuple[float, Case] | None = None
    for run in [r for r in report.runs if r.mode == mode]:
        typical = typical_floors(run)
        for case in run.cases:
            ratio = _ratio(run, case, k, METRICS, judge_metric, typical)
            if best is None or ratio > best[0]:
                best = (ratio, case)
    return best[1] if best is not None and best[0] > 1 else None


def _ratio(run: Run, case: Case, k: float, metrics: Sequence, judge_metric: Callable, typical: dict) -> float:
    if any("not finite" in problem for problem in case.problems):
        return math.inf
    ratios = [judge_metric(run, case, o, m, typical, k).ratio for o in case.outputs for m in metrics]
    return max((math.inf if math.isnan(r) else r for r in ratios), default=0.0)


def _pick(wanted: Sequence[str], rows: dict[str, ModuleRow], known: Trace) -> list[str]:
    """Those of `wanted` that are not yet compared, evenly spaced if they do not all fit."""
    open_names = [n for n in wanted if n not in rows]
    total = sum(known.elements[n] * 8 for n in open_names)
    stride = max(1, math.ceil(total / ROUND_BYTES))
    if stride == 1:
        return open_names
    picked = open_names[stride - 1 :: stride]
    return picked or open_names[-1:]


def _narrow(names: Sequence[str], rows: dict[str, ModuleRow], known: Trace) -> list[str]:
    """What to look at next: between the last good module and the first bad one, and whatever is part
    of the bad one or enters it (the last good one may lie on a branch beside the fault)."""
    compared = [n for n in names if n in rows]
    bad = first_bad(compared, rows)
    if bad is None:
        return list(names)
    before = [n for n in compared[: compared.index(bad)] if rows[n].state == "ok"]
    low = names.index(before[-1]) + 1 if before else 0
    enters = known.sources.get(bad, set())
    between = set(names[low : names.index(bad) + 1])
    return [n for n in names if n in between or n in enters or n.startswith(f"{bad}.")]


def first_bad(order: Sequence[str], rows: dict[str, ModuleRow]) -> str | None:
    """The first module that is far off, or that is off and followed mostly by others that are."""
    for i, name in enumerate(order):
        row = rows[name]
        if row.state != "off":
            continue
        if row.ratio is None or not (row.ratio <= PLAIN):  # no ratio: it is not even finite
            return name
        following = [
            rows[n].state for n in order[i + 1 : i + 1 + SUSTAINED] if rows[n].state != "not comparable"
        ]
        if following.count("off") * 2 >= len(following):
            return name
    return None


def _outputs(
    component: Component,
    case: Inputs,
    names: Sequence[str],
    weights: str,
    arithmetic: str,
    layout: str = "contiguous",
) -> Tensors:
    """Outputs of the named modules in one arithmetic."""
    found: Tensors = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: object, given: object, output: object) -> None:
            tensor = first_tensor(output)
            if tensor is not None:
                found[name] = tensor.detach().clone()

        return hook

    with Reference(component, weights=weights, arithmetic=arithmetic, layout=layout) as reference:
        inner = reference.module.get_submodule("inner")
        handles = [inner.get_submodule(name).register_forward_hook(keep(name)) for name in names]
        reference(case.tensors)
        for handle in handles:
            handle.remove()
    return found


def first_tensor(output: object) -> torch.Tensor | None:
    """A module's output where it is one tensor, or the only one of a tuple."""
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, tuple | list):
        tensors = [item for item in output if isinstance(item, torch.Tensor)]
        return tensors[0] if len(tensors) == 1 else None
    sample = getattr(output, "sample", None)
    return sample if isinstance(sample, torch.Tensor) else None


def _row(
    name: str,
    truth: torch.Tensor | None,
    floors: Sequence[torch.Tensor],
    actual: torch.Tensor | None,
    arithmetic: str,
    k: float,
) -> ModuleRow:
    empty = ModuleRow(module=name, relative_l2=None, floor=None, ratio=None, state="not comparable")
    if truth is None or not floors or actual is None:
        return empty.model_copy(update={"note": "no single output"})
    if actual.shape != truth.shape:
        if actual.numel() != truth.numel():
            return empty.model_copy(
                update={"note": f"shape {list(actual.shape)}, {list(truth.shape)} expected"}
            )
        actual = actual.reshape(truth.shape)
    if not bool(torch.isfinite(actual).all()):
        return empty.model_copy(update={"state": "off", "note": "not finite"})
    try:
        mine = compare(actual.to(torch.float64).numpy(), truth.numpy())
        noise = [compare(floor.to(torch.float64).numpy(), truth.numpy()) for floor in floors]
    except NotComparable as error:
        return empty.model_copy(update={"note": str(error)})
    unit = UNIT_ROUNDOFF[arithmetic]
    least = max(unit, *(n.relative_l2 for n in noise))
    largest = max(unit * mine.truth_max, *(n.max_abs for n in noise))
    ratio = max(mine.relative_l2 / (k * least), mine.max_abs / (k * largest) if largest > 0 else 0.0)
    return ModuleRow(
        module=name,
        relative_l2=mine.relative_l2,
        floor=least,
        ratio=ratio,
        state="ok" if ratio <= 1 else "off",
    )


def _conclude(case: str, order: list[str], rows: dict[str, ModuleRow], known: Trace) -> Bisection:
    bad = first_bad(order, rows)
    count = sum(row.state != "not comparable" for row in rows.values())
    if bad is None:
        text = (
            f"All {count} modules that could be compared agree with PyTorch; the fault lies after the last "
            "of them, in code of the component's own."
        )
        return Bisection(case=case, first_bad=None, explanation=text, modules_compared=count)
    position = order.index(bad)
    around = order[max(0, position - AROUND) : position + AROUND]
    blamed, why = _blame(bad, rows, known)
    return Bisection(
        case=case,
        first_bad=blamed,
        explanation=why,
        rows=[rows[name] for name in around],
        modules_compared=count,
    )


def _blame(bad: str, rows: dict[str, ModuleRow], known: Trace) -> tuple[str, str]:
    """The module to name, and why in words."""
    inputs = known.sources.get(bad, set())
    hidden = sorted(s.removeprefix(Trace.CODE) for s in inputs if s.startswith(Trace.CODE))
    children = [name for name in rows if name.startswith(f"{bad}.")]
    if children:
        return bad, (
            f"{bad} is the first module whose output is off. What its own parts give is right, so the "
            "fault is in what it does with them."
        )
    if hidden:
        owner = hidden[0]
        return owner or bad, (
            f"{bad} is the first module whose output is off. Its input is computed by the code of "
            f"{owner or 'the component'} itself, which gives no intermediate value: the fault is there or in "
            f"{bad.rsplit('.', 1)[-1]}."
        )
    between = sorted(s.removeprefix(Trace.THROUGH) for s in inputs if s.startswith(Trace.THROUGH))
    if between:
        return bad, (
            f"{bad} is the first module whose output is off; what enters it is right, but comes through "
            f"{between[0]}, which runs several times and shows no value of its own: the fault may be there."
        )
    return bad, f"{bad} is the first module whose output is off; everything that enters it is right."


def explain(
    report: Report,
    openers: Mapping[str, Mapping[str, Opened]],
    followed: Mapping[tuple[str, str], tuple[Component, list[Inputs]]],
    task: Callable[[str, float], Callable[[str], None]],
) -> None:
    """Find where each failing component leaves the reference. A search that breaks says so.

    Args:
        followed: By component and way of running it, what its truth was computed of.
        task: Begins a task of the progress, and returns what counts its steps.
    """
    for part in report.components:
        failed = [run.mode for run in part.runs if run.gates and run.verdict == "FAIL"]
        mode = failed[0] if failed else "graph"
        opened = openers.get(part.name, {}).get(mode)
        if part.verdict != "FAIL" or opened is None or (part.name, mode) not in followed:
            continue
        component, cases = followed[part.name, mode]
        tick = task(f"looking for the first bad module of {part.name}", 1)
        try:
            part.bisection = bisect(component, opened, part, cases, report.settings.k, tick, mode)
        except Exception as error:  # the verdict stands without it
            text = f"The search for the first bad module stopped: {type(error).__name__}: {error}"
            part.bisection = Bisection(case="", first_bad=None, explanation=text)
