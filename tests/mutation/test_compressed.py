"""Quantised artifacts: the honest ones pass, and every fault in codes, scales and zero points is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutation.compressed import FAULTS, INT4, INT8, TARGETS, Options, copy
from tests.mutation.faults import Fault
from tests.mutation.workshop import Workshop


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
    outcome = shop.judge(fault.plant(shop, target), bisect=False)
    assert outcome.detected, f"{fault.title}: {outcome.verdict}, error ÷ limit {outcome.ratio}"
    assert fault.weight in outcome.reason  # type: ignore[attr-defined]
