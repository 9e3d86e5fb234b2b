"""The verdict engine alone: properties of `judge` over made-up measurements."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.artifact import SourceRecord
from exporter.parity.metrics import compare
from exporter.parity.schema import (
    Case,
    ComponentReport,
    OutputMeasurement,
    Painting,
    PipelineReport,
    PipelineRun,
    Report,
    Run,
    Settings,
    Step,
)
from exporter.parity.verdict import CHAOS, combine, judge

K = 4.0
TRUTH = np.random.default_rng(0).normal(size=512)
NOISE = np.random.default_rng(1).normal(size=512)


def output(error: float, floor: float = 1e-6) -> OutputMeasurement:
    return OutputMeasurement(
        name="out",
        artifact=compare(TRUTH + error * NOISE, TRUTH),
        floors={"contiguous": compare(TRUTH + floor * NOISE, TRUTH)},
        unit=2.0**-24,
    )


def report(*cases: Case, pipeline: PipelineReport | None = None) -> Report:
    run = Run(mode="graph", precision_hint="f32", weights="float32", arithmetic="float32", cases=list(cases))
    return Report(
        artifact="a",
        target="t",
        source=SourceRecord(source="s", pipeline_class="P"),
        digest="0",
        settings=Settings(k=K, prompts=["p"], steps=1, samples=1, seed=0),
        components=[ComponentReport(name="unet", runs=[run])],
        pipeline=pipeline,
    )


def case(*outputs: OutputMeasurement, **fields: object) -> Case:
    return Case(id="c", kind="captured", label="a case", outputs=list(outputs), **fields)


@given(st.floats(1e-9, 1.0), st.floats(0.1, 100))
@settings(max_examples=60, deadline=None)
def test_the_limit_is_k_times_the_floor(error: float, k: float) -> None:
    judged = judge(report(case(output(error))), k)
    worst = judged.components[0].worst
    assert worst is not None
    assert worst.limit == pytest.approx(k * worst.floor)
    assert judged.verdict == ("PASS" if worst.value <= worst.limit else "FAIL")
    assert (worst.ratio <= 1) == (judged.verdict == "PASS")


@given(st.floats(1e-9, 1.0), st.floats(0.1, 50), st.floats(1.0, 10.0))
@settings(max_examples=60, deadline=None)
def test_a_larger_k_never_fails_what_a_smaller_one_passed(error: float, k: float, more: float) -> None:
    small, large = judge(report(case(output(error))), k), judge(report(case(output(error))), k * more)
    assert small.verdict != "PASS" or large.verdict == "PASS"


@pytest.mark.parametrize("field", ["relative_l2", "max_abs"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["artifact", "floor"])
def test_what_is_not_a_number_never_passes(field: str, value: float, where: str) -> None:
    made = output(1e-9)
    metrics = made.artifact if where == "artifact" else made.floors["contiguous"]
    setattr(metrics, field, value)
    assert judge(report(case(made)), K).verdict == "FAIL"


def test_nothing_measured_is_never_a_pass() -> None:
    assert judge(report(), K).verdict == "INCONCLUSIVE"
    assert judge(report(case()), K).verdict == "INCONCLUSIVE"
    assert judge(report(case(not_checked="no truth")), K).verdict == "INCONCLUSIVE"
    assert judge(report(case(output(1e-9)), case(not_checked="no truth")), K).verdict == "INCONCLUSIVE"
    assert judge(report(case(output(1e-9), problems=["x has a NaN"])), K).verdict == "FAIL"
    empty = report(case(output(1e-9)))
    empty.components = []
    assert judge(empty, K).verdict == "INCONCLUSIVE"


def test_no_floor_is_no_pass() -> None:
    made = output(1e-9)
    made.floors = {}
    assert judge(report(case(made)), K).verdict == "FAIL"


def test_combining() -> None:
    assert combine([]) == "INCONCLUSIVE"
    assert combine(["PASS", "PASS"]) == "PASS"
    assert combine(["PASS", "INCONCLUSIVE"]) == "INCONCLUSIVE"
    assert combine(["INCONCLUSIVE", "FAIL", "PASS"]) == "FAIL"


def test_a_default_the_manifest_does_not_ask_for_warns() -> None:
    made = report(case(output(1e-7)))
    default = made.components[0].runs[0].model_copy(deep=True)
    default.mode, default.arithmetic, default.gates = "default", "bfloat16", False
    default.cases = [case(output(1.0))]
    made.components[0].runs.append(default)
    judged = judge(made, K)
    assert judged.verdict == "PASS" and judged.components[0].warnings
    assert "runtime's own default (bfloat16)" in judged.summary
    default.gates = True
    assert judge(made, K).verdict == "FAIL"
    default.gates = False
    default.cases = [case(problems=["out has 1 values that are not finite"])]
    assert judge(made, K).verdict == "FAIL"


def painted(steps: list[tuple[float | None, float]], image: float | None = 1e-6) -> PipelineReport:
    painting = Painting(
        prompt="p",
        seed=0,
        steps=[Step(step=i + 1, artifact=a, twin=t) for i, (a, t) in enumerate(steps)],
        image_error=image,
        twin_image_error=1e-6,
    )
    run = PipelineRun(mode="graph", arithmetic="float32", paintings=[painting])
    return PipelineReport(
        pipeline_class="P", scheduler="S", steps=2, guidance=7.5, exported=["unet"], runs=[run]
    )


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [
        (painted([(1e-6, 1e-6), (2e-6, 1e-6)]), "PASS"),
        (painted([(1e-6, 1e-6), (5e-6, 1e-6)]), "FAIL"),
        (painted([(1e-6, 1e-6), (math.nan, 1e-6)]), "FAIL"),
        (painted([(1e-6, 1e-6), (None, 1e-6)]), "FAIL"),
        (painted([(1e-6, 1e-6)], image=1e-5), "FAIL"),
        (painted([(1e-6, 1e-6)], image=None), "FAIL"),
        (painted([(1e-6, 1e-6), (1.0, 2 * CHAOS)]), "PASS"),
        (painted([(1e-4, 1e-6), (1.0, 2 * CHAOS)]), "FAIL"),
        (painted([(1.0, 2 * CHAOS)]), "INCONCLUSIVE"),
        (painted([(1.0, math.inf)]), "INCONCLUSIVE"),
        (painted([]), "FAIL"),
    ],
)
def test_a_fault_is_told_from_chaos(pipeline: PipelineReport, expected: str) -> None:
    judged = judge(report(case(output(1e-9)), pipeline=pipeline), K)
    assert judged.verdict == expected
    assert judged.pipeline is not None and (judged.pipeline.reasons == []) == (expected == "PASS")


def test_a_report_survives_json() -> None:
    made = report(case(output(0.0), output(1e-3)), pipeline=painted([(1e-6, math.inf)]))
    judged = judge(made, K)
    again = Report.model_validate_json(judged.model_dump_json())
    assert again == judged
    assert math.isinf(again.components[0].runs[0].cases[0].outputs[0].artifact.sqnr_db)
