"""Measures one component: truth, noise floor and artifact on the same inputs. Judges nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from exporter.errors import BackendMissing, ExporterError
from exporter.parity import decisions
from exporter.parity.arithmetic import UNIT_ROUNDOFF, Tensors
from exporter.parity.budget import evaluate, layouts_of
from exporter.parity.cases import Inputs, convert_inputs
from exporter.parity.metrics import NotComparable, compare
from exporter.parity.peaks import overflows
from exporter.parity.schema import Case, OutputMeasurement, PeakRow, Run
from exporter.parity.structure import declared_faults, output_faults

if TYPE_CHECKING:
    import numpy as np

    from exporter.architectures.base import Component
    from exporter.artifact import ComponentRecord
    from exporter.targets.base import PrecisionHint, Runner, Target

FLOATS = ("float32", "float16", "bfloat16")
Shapes = Mapping[str, tuple[int, ...]]
STORED = (*FLOATS, "float8_e4m3fn")
"""Dtypes of weights whose rounding PyTorch can be made to repeat."""


class Opened:
    """How to open one exported component, and what it computes in.

    Attributes:
        exact: Without the roundings of activations that the file asks for (`RunOptions.exact`).
        weights: Dtype the weights are stored in.
        arithmetic: Dtype it computes in; known once it was opened.
        only_rounded: Its weights are the checkpoint's but for that; known once it was opened.
    """

    def __init__(
        self,
        target: Target,
        root: Path,
        record: ComponentRecord,
        hint: PrecisionHint,
        threads: int | None = None,
        trust: bool = False,
        exact: bool = False,
    ) -> None:
        self.exact = exact
        self.target, self.root, self.record, self.hint = target, root, record, hint
        self.threads, self.trust = threads, trust
        rest = (record.details.get("compression") or {}).get("rest")
        stored = rest if record.dtype not in STORED else record.dtype  # what is not quantised
        self.weights = stored if stored in STORED else "float32"
        self.arithmetic = self.weights if self.weights in FLOATS else "float32"
        self.only_rounded = False

    def __call__(self, *, peaks: bool = False, watch: Sequence[str] = ()) -> Runner:
        from exporter.targets.base import RunOptions

        runner = self.target.open(
            self.root,
            self.record,
            RunOptions(
                precision_hint=self.hint,
                threads=self.threads,
                trust=self.trust,
                peaks=peaks,
                exact=self.exact,
                watch=tuple(watch),
            ),
        )
        if runner.precision in FLOATS:
            self.arithmetic = str(runner.precision)
        self.only_rounded = runner.only_rounded
        return runner

    def truth(self, component: Component) -> str:
        """What the weights of the truth are rounded to.

        A graph that is computed in more than its weights are stored in is held against a truth with the same
        weights: next to the rounding of all weights, a fault of the graph a thousand times the noise of its
        arithmetic would not be seen. Not so where something else becomes of them (a LoRA is fused).
        """
        wider = self.weights in ("float16", "bfloat16") and self.arithmetic == "float32"
        same = self.only_rounded and not component.checkpoint.rounded(component.folder)
        return self.weights if wider and same else "float32"


def hints_of(record: ComponentRecord, wanted: str | None) -> dict[Literal["graph", "default"], PrecisionHint]:
    """How a component is run: as a graph, and as it is meant to be.

    Args:
        wanted: The one hint to run it under; None asks for both.
    """
    from exporter.parity.quantised import rounds_activations

    chosen = record.details.get("precision_hint")
    if rounds_activations(record):  # the graph is without its roundings: with them it is run as it is meant
        return {"graph": wanted or "f32", "default": wanted or chosen or "f32"}  # type: ignore[dict-item]
    if wanted is not None:
        return {"graph": wanted}  # type: ignore[dict-item]
    return {"graph": "f32", "default": chosen if chosen in ("bf16", "f16") else "default"}


@dataclass
class Replay:
    """What one way of running the artifact gave: a case each, and the outputs of those without fault.

    Attributes:
        decisions: Of each case, by the paths of `Component.decides`.
        faults: Of the file, whichever way it is run.
        overflows: Of this way of running it.
        same_as: The arithmetic for which nothing was run, as asked.
        not_checked: Why nothing here can run it.
    """

    cases: list[Case] = field(default_factory=list)
    outputs: list[dict[str, np.ndarray]] = field(default_factory=list)
    decisions: list[dict[str, np.ndarray]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    peaks: list[PeakRow] = field(default_factory=list)
    overflows: list[str] = field(default_factory=list)
    same_as: str | None = None
    not_checked: str | None = None


def replay(
    component: Component,
    opened: Opened,
    cases: Sequence[Inputs],
    shapes: Sequence[Shapes],
    tick: Callable[[str], None],
    skip_if: str | None = None,
) -> Replay:
    """Run the artifact on every case. Whatever a runtime throws is a fault, never a crash.

    Args:
        shapes: Of the outputs of every case, by name.
        skip_if: Run nothing when the runtime computes in this arithmetic, activations as they are.
    """
    result = Replay()
    watch = () if component.decides is None else component.decides.paths
    try:
        runner = opened(peaks=True, watch=watch)
    except BackendMissing as error:
        result.not_checked = error.message
        return result
    except Exception as error:
        result.faults.append(f"the artifact does not open: {_sentence(error)}")
        return result
    with runner:
        if skip_if is not None and opened.arithmetic == skip_if and not runner.rounds_activations:
            result.same_as = skip_if
            return result
        result.faults += declared_faults(component, opened.record, runner) + runner.client_faults()
        for case, wanted in zip(cases, shapes, strict=True):
            measured, outputs, decided = _run_case(case, wanted, runner, opened.record)
            if outputs and set(decided) != set(watch):
                measured.not_checked, outputs = decisions.NOT_SHOWN, {}
            result.cases.append(measured)
            result.outputs.append(outputs)
            result.decisions.append(decided)
            tick(f"{case.label} in the artifact ({opened.arithmetic})")
        result.peaks = [PeakRow(**vars(peak)) for peak in runner.peaks()]
        if opened.arithmetic == "float16":
            result.overflows = overflows(result.peaks)
    return result


def measure(
    component: Component,
    opened: Opened,
    played: Replay,
    cases: Sequence[Inputs],
    truths: Sequence[Tensors],
    *,
    mode: Literal["graph", "default"],
    cache: Path | None,
    tick: Callable[[str], None],
    originals: Sequence[Tensors] | None = None,
) -> Run:
    """The metrics of a replay, and of PyTorch at the same precision beside them.

    Args:
        component: Of one that decides, the one that is told; `cases` then have its decisions.
        truths: float64 outputs of the reference for every case. Where `opened` has weights that are only
            rounded, and computes in more, they are computed anew with these (`Opened.truth`).
        originals: The same with the checkpoint's weights, where `component` has quantised ones.
    """
    import numpy as np

    run = Run(mode=mode, precision_hint=opened.hint, weights=opened.weights, arithmetic=opened.arithmetic)
    run.cases, run.peaks, run.problems = played.cases, played.peaks, played.overflows
    if any(t.name == "timestep" and "int" in t.dtype for t in opened.record.inputs):
        run.note = "takes whole timesteps only: schedulers with fractional ones (Euler, LMS) are not covered"
    if not any(played.outputs):
        return run
    run.truth = opened.truth(component) if originals is None else "float32"
    if run.truth != "float32":
        truths = evaluate(component, cases, weights=run.truth, arithmetic="float64", cache=cache)
    precision = {"weights": opened.weights, "arithmetic": opened.arithmetic}
    floors = {
        layout: evaluate(component, cases, **precision, layout=layout, tick=tick, cache=cache)
        for layout in layouts_of(component)
    }
    for i, (case, outputs, truth) in enumerate(zip(run.cases, played.outputs, truths, strict=True)):
        if outputs:
            found_there = {layout: found[i] for layout, found in floors.items()}
            case.decisions = decisions.measured(component, truth, found_there, opened.arithmetic)
        for name, tensor in truth.items():
            if name not in outputs:  # no output was usable, or it says how good a decision is
                continue
            expected = tensor.numpy()
            too_large = overflow(name, [found[i][name] for found in floors.values()], opened.arithmetic)
            if too_large is not None and np.isfinite(expected).all():
                case.problems.append(too_large)
                continue
            try:
                artifact = compare(outputs[name], expected)
                noise = {
                    layout: compare(found[i][name].to(torch.float64).numpy(), expected)
                    for layout, found in floors.items()
                }
                original = compare(outputs[name], originals[i][name].numpy()) if originals else None
            except NotComparable as error:
                case.not_checked = f"{name}: PyTorch gives no usable truth or floor here ({error})"
                continue
            unit = UNIT_ROUNDOFF.get(str(outputs[name].dtype), 0.0)
            case.outputs.append(
                OutputMeasurement(name=name, artifact=artifact, floors=noise, unit=unit, original=original)
            )
    return run


def overflow(name: str, floors: Sequence[torch.Tensor], arithmetic: str) -> str | None:
    """That PyTorch cannot compute this in the artifact's arithmetic either, as a fault; or None.

    What runs here may hold it all the same (ONNX Runtime computes float16 in float32 on many processors);
    where the arithmetic is really used the result is not finite, and the picture black.
    """
    if all(bool(torch.isfinite(floor).all()) for floor in floors):
        return None
    return (
        f"{name}: {arithmetic} cannot hold what is computed here: PyTorch in {arithmetic} gives values that "
        "are not finite"
    )


def _run_case(
    case: Inputs, shapes: Shapes, runner: Runner, record: ComponentRecord
) -> tuple[Case, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The case, its outputs and what it decided; neither where there is a fault."""
    started = time.perf_counter()
    result = Case(id=case.id, kind=case.kind, label=case.label, inputs=case.described())
    try:
        arrays, result.conversions = convert_inputs(case, record.inputs)
    except ValueError as error:
        result.problems.append(str(error))
        return result, {}, {}
    try:
        outputs = runner.run(arrays)
    except Exception as error:  # whatever a runtime throws: the artifact could not compute this case
        result.problems.append(f"the artifact refuses it: {_sentence(error)}")
        return result, {}, {}
    result.seconds = time.perf_counter() - started
    decided = decisions.taken_from(outputs)
    result.problems = output_faults(outputs, record.outputs, shapes)
    return (result, {}, {}) if result.problems else (result, outputs, decided)


def _sentence(error: BaseException) -> str:
    if isinstance(error, ExporterError):
        return error.message
    line = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {line[:300]}"
