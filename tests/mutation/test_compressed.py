"""Quantised artifacts: the honest ones pass, and every fault in codes, scales and zero points is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.parity.verdict import judge
from tests.mutation.compressed import ACTIVATIONS, FAULTS, INT4, INT8, ROUNDED, TARGETS, Options, copy
from tests.mutation.faults import Fault
from tests.mutation.formats import format_of
from tests.mutation.workshop import Workshop, rehash


@pytest.fixture(scope="module")
def shop(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("compressed"), str(tiny))


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
@pytest.mark.parametrize("options", [INT8, INT4], ids=["int8", "int4"])
@pytest.mark.parametrize("target", TARGETS)
def test_the_honest_artifact_passes(shop: Workshop, target: str, options: Options, component: str) -> None:
    report = shop.verify(copy(shop, target, component, options, "honest"))
    assert report.verdict == "PASS", report.summary
    part = report.components[0]
    assert part.worst is not None and 0 < part.worst.ratio <= 1
    assert part.compression is not None and part.compression.weights


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
@pytest.mark.parametrize("target", TARGETS)
def test_a_planted_fault_is_found_and_its_weight_named(shop: Workshop, target: str, fault: Fault) -> None:
    if (reason := fault.why_not(format_of(target))) is not None:
        pytest.skip(reason)
    outcome = shop.judge(fault.plant(shop, target), bisect=False)
    assert outcome.detected, f"{fault.title}: {outcome.verdict}, error ÷ limit {outcome.ratio}"
    assert fault.weight in outcome.reason  # type: ignore[attr-defined]


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_the_honest_artifact_with_rounded_activations_passes(shop: Workshop, component: str) -> None:
    report = shop.verify(copy(shop, "openvino", component, ACTIVATIONS, "honest"))
    assert report.verdict == "PASS", report.summary
    part = report.components[0]
    assert part.compression is not None and part.compression.activations
    graph, shipped = part.runs
    assert graph.worst is not None and 0 < graph.worst.ratio <= 1 and not graph.stated
    assert shipped.stated and shipped.worst is None and shipped.verdict == "PASS"


@pytest.mark.parametrize("fault", ROUNDED, ids=lambda fault: fault.name)
def test_a_fault_in_what_is_rounded_is_found(shop: Workshop, fault: Fault) -> None:
    outcome = shop.judge(fault.plant(shop, "openvino"), bisect=False)
    assert outcome.detected, f"{fault.title}: {outcome.verdict}, error ÷ limit {outcome.ratio}"
    if fault.name != "range-behind":  # found by what the graph computes
        layer = fault.weight.rpartition(".")[0]  # type: ignore[attr-defined]
        assert layer.removesuffix("to_q") in outcome.reason  # query, key and value have one rounding


def test_the_stated_limit_by_itself_finds_what_would_be_seen(shop: Workshop) -> None:
    """As if nobody had looked at the ranges: eight numbers for 256 leave less than is stated."""
    root = copy(shop, "openvino", "unet", ACTIVATIONS, "eight-numbers")
    path = root / "unet/openvino_model.xml"
    path.write_text(path.read_text().replace('levels="256"', 'levels="8"'))
    rehash(root)
    report = shop.verify(root, bisect=False)
    assert report.verdict == "FAIL" and "rounded to 8 numbers" in report.summary
    compression = report.components[0].compression
    assert compression is not None
    compression.activations.clear()
    again = judge(report, 4)
    assert again.verdict == "FAIL" and "(activations in int8)" in again.summary, again.summary
    assert again.components[0].runs[0].verdict == "PASS"  # the graph is what it was
