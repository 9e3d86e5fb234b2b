"""Integers against the checkpoint's weights, and the stated limits of quantised artifacts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from exporter.checkpoints import StoredTensor
from exporter.checkpoints.safetensors_file import SafetensorsFile
from exporter.errors import UsageError
from exporter.parity.metrics import compare
from exporter.parity.parts import Compression, WeightCheck
from exporter.parity.quantised import check
from exporter.parity.schema import (
    OutputMeasurement,
    Painting,
    PipelineReport,
    PipelineRun,
    Report,
    Step,
)
from exporter.parity.stated import FINEST, NEAREST, STATED
from exporter.parity.verdict import judge
from exporter.targets.base import QuantisedWeight
from exporter.targets.quantisation import How, quantise
from tests.parity.test_verdict import NOISE, TRUTH, K, case, report

WEIGHTS = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
SCHEMES = [How(8, True), How(8, False), How(4, True, 16), How(4, False, 32)]
by_label = pytest.mark.parametrize("how", SCHEMES, ids=lambda how: how.label)
Codes = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> StoredTensor:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file({"w": WEIGHTS}, path)
    return SafetensorsFile(path).tensors["w"]


def weight(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, how: How) -> QuantisedWeight:
    low, high = (0, 15) if how.bits == 4 else (-127, 127) if how.symmetric else (0, 255)
    step = scales.astype(np.float32)[..., None]
    values = (codes.astype(np.float32) - zeros.astype(np.float32)[..., None]) * step
    shape = (codes.shape[0], 64)
    return QuantisedWeight(
        "w",
        values.reshape(shape),
        np.broadcast_to(np.abs(step), codes.shape).reshape(shape),
        ((codes <= low) | (codes >= high)).reshape(shape),
    )


@by_label
@pytest.mark.parametrize("scales_as", ["float32", "float16"])
def test_an_honest_weight_is_within_half_a_step(original: StoredTensor, how: How, scales_as: str) -> None:
    found = check(weight(*quantise(WEIGHTS, how, scales_as), how), original, how.label)
    assert 0.4 < found.steps <= NEAREST
    assert 0.9 < found.coarseness <= FINEST
    assert found.sqnr_db == pytest.approx(43 if how.bits == 8 else 20, abs=5)


@by_label
@pytest.mark.parametrize("scales_as", ["float32", "float16"])
def test_both_ends_of_a_range_are_no_fault(tmp_path: Path, how: How, scales_as: str) -> None:
    """int4 from -8 to 7 cuts off the positive end by a step, and a float16 scale by a little more."""
    reach = np.geomspace(1e-2, 10, 300, dtype=np.float32)
    weights = np.random.default_rng(1).uniform(-1, 1, (300, 64)).astype(np.float32)
    weights[:, ::16], weights[:, 1::16] = -1, 1
    weights *= reach[:, None]
    save_file({"w": weights}, tmp_path / "w.safetensors")
    stored = SafetensorsFile(tmp_path / "w.safetensors").tensors["w"]
    found = check(weight(*quantise(weights, how, scales_as), how), stored, how.label)
    assert found.steps <= NEAREST and found.coarseness <= FINEST


def wrong_scale(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray) -> Codes:
    scales[2, 0] *= np.float32(1.1)
    return codes, scales, zeros


def shifted_zero(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray) -> Codes:
    zeros[3, 0] += 1
    return codes, scales, zeros


def swapped_codes(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray) -> Codes:
    row = codes[1, 0]
    apart = int(np.argmax(np.abs(row[0::2].astype(int) - row[1::2].astype(int)))) * 2
    row[[apart, apart + 1]] = row[[apart + 1, apart]]
    return codes, scales, zeros


def one_nan(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray) -> Codes:
    scales[4, 0] = np.nan
    return codes, scales, zeros


@by_label
@pytest.mark.parametrize("fault", [wrong_scale, shifted_zero, swapped_codes, one_nan])
def test_a_fault_is_more_than_half_a_step(
    original: StoredTensor, how: How, fault: Callable[..., Codes]
) -> None:
    found = check(weight(*fault(*quantise(WEIGHTS, how)), how), original, how.label)
    assert not (found.steps <= NEAREST)


def test_the_place_of_the_worst_is_named(original: StoredTensor) -> None:
    codes, scales, zeros = quantise(WEIGHTS, SCHEMES[0])
    codes[5, 0, 7] = 0 if abs(int(codes[5, 0, 7])) > 20 else 90
    assert check(weight(codes, scales, zeros, SCHEMES[0]), original, SCHEMES[0].label).index == [5, 7]


def test_coarser_steps_than_the_scheme_needs(original: StoredTensor) -> None:
    """Every code the nearest, and half of the codes unused."""
    codes, scales, zeros = quantise(WEIGHTS, SCHEMES[1])
    coarse = scales * 2
    nearest = np.clip(np.rint(WEIGHTS.reshape(codes.shape) / coarse[..., None]) + 128, 0, 255)
    found = check(
        weight(nearest.astype(np.uint8), coarse, np.full_like(zeros, 128), SCHEMES[1]), original, "int8_asym"
    )
    assert found.steps <= NEAREST and found.coarseness == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("label", ["None", "int8", "int4_asym_group48", ""])
def test_a_label_that_says_nothing_is_no_excuse(original: StoredTensor, label: str) -> None:
    found = check(weight(*quantise(WEIGHTS, SCHEMES[0]), SCHEMES[0]), original, label)
    assert found.coarseness == math.inf


def quantised_report(
    sqnr: float, *, scheme: str = "int8_asym", steps: float = 0.5, coarse: float = 1.0
) -> Report:
    noise = 10 ** (-sqnr / 20) if math.isfinite(sqnr) else 0.0
    original = compare(TRUTH + noise * NOISE * np.linalg.norm(TRUTH) / np.linalg.norm(NOISE), TRUTH)
    output = OutputMeasurement(
        name="out",
        artifact=compare(TRUTH + 1e-6 * NOISE, TRUTH),
        floors={"contiguous": compare(TRUTH + 1e-6 * NOISE, TRUTH)},
        unit=2.0**-24,
        original=original if math.isfinite(sqnr) else None,
    )
    made = report(case(output))
    checked = WeightCheck(name="w", how=scheme, steps=steps, coarseness=coarse, index=[0], sqnr_db=40.0)
    made.components[0].compression = Compression(scheme=scheme, weights=[checked])
    return made


@pytest.mark.parametrize("scheme", ["int8_asym", "int4_sym"])
def test_the_limit_is_the_schemes(scheme: str) -> None:
    limit = STATED[scheme[:4]][0]
    assert judge(quantised_report(limit + 0.1, scheme=scheme), K).verdict == "PASS"
    judged = judge(quantised_report(limit - 0.1, scheme=scheme), K)
    assert judged.verdict == "FAIL" and "stated limit" in judged.components[0].reasons[0]
    assert judge(quantised_report(limit - 0.1, scheme=scheme), K, min_sqnr=limit - 1).verdict == "PASS"
    assert judge(quantised_report(limit + 0.1, scheme=scheme), K, min_sqnr=limit + 1).verdict == "FAIL"


def test_what_was_not_compared_with_the_original_fails() -> None:
    assert judge(quantised_report(math.nan), K).verdict == "FAIL"


@pytest.mark.parametrize(
    "fields", [{"steps": 0.6}, {"steps": math.nan}, {"coarse": 1.1}, {"coarse": math.nan}]
)
def test_a_weight_that_is_not_the_nearest_fails(fields: dict[str, float]) -> None:
    judged = judge(quantised_report(60, **fields), K)
    assert judged.verdict == "FAIL" and "quantised weight w" in judged.components[0].reasons[0]


@pytest.mark.parametrize("limit", [math.nan, math.inf])
def test_a_limit_that_is_no_number_is_refused(limit: float) -> None:
    with pytest.raises(UsageError):
        judge(quantised_report(60), K, min_sqnr=limit)


@pytest.mark.parametrize(
    ("psnr", "verdict"), [(STATED["int8"][1] + 1, "PASS"), (5.0, "FAIL"), (None, "FAIL")]
)
def test_pictures_have_a_stated_limit(psnr: float | None, verdict: str) -> None:
    painting = Painting(
        prompt="p", seed=0, steps=[Step(step=1, artifact=1e-6, twin=1e-6)],
        image_error=1e-6, twin_image_error=1e-6, original_psnr_db=psnr,
    )  # fmt: skip
    run = PipelineRun(mode="graph", arithmetic="float32", paintings=[painting])
    made = quantised_report(60)
    made.pipeline = PipelineReport(
        pipeline_class="P",
        scheduler="S",
        steps=1,
        guidance=1.0,
        exported=["unet"],
        runs=[run],
        scheme="int8_asym",
    )
    assert judge(made, K).verdict == verdict
