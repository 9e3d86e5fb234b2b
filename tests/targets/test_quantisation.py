"""Rounding weights to integers, and which weights are chosen for how many bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.numpy import save_file

from exporter.architectures import Component, components_of
from exporter.checkpoints import StoredTensor, resolve
from exporter.checkpoints.safetensors_file import SafetensorsFile
from exporter.errors import CheckpointError
from exporter.targets.quantisation import (
    How,
    WeightOptions,
    choose,
    fitting_group,
    loss,
    packed,
    quantise,
    quantised_parts,
    unpacked,
)

SCHEMES = [How(8, True), How(8, False), How(4, True, 16), How(4, False, 16), How(4, False, 32)]


def values_of(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    return (codes.astype(np.float64) - zeros[..., None].astype(np.float64)) * scales[..., None].astype(float)


def stored(tmp_path: Path, array: np.ndarray) -> StoredTensor:
    save_file({"weight": array}, tmp_path / "w.safetensors")
    return SafetensorsFile(tmp_path / "w.safetensors").tensors["weight"]


@pytest.mark.parametrize("how", SCHEMES, ids=lambda how: how.label)
@pytest.mark.parametrize("scales_as", ["float32", "float16"])
@given(seed=st.integers(0, 2**31), size=st.floats(-3, 3), shift=st.floats(-2, 2))
@settings(max_examples=25, deadline=None)
def test_every_code_is_the_nearest(how: How, scales_as: str, seed: int, size: float, shift: float) -> None:
    rng = np.random.default_rng(seed)
    weights = ((rng.standard_normal((3, 64)) + shift) * 10.0**size).astype(np.float32)
    codes, scales, zeros = quantise(weights, how, scales_as)
    assert scales.dtype == scales_as and codes.shape[:2] == scales.shape == zeros.shape
    step = np.abs(scales[..., None].astype(np.float64))
    error = np.abs(values_of(codes, scales, zeros) - weights.reshape(codes.shape)) / step
    ends = (0, 15) if how.bits == 4 else (-127, 127) if how.symmetric else (0, 255)
    inside = (codes != ends[0]) & (codes != ends[1])
    assert error[inside].max(initial=0) <= 0.5001
    assert error.max() <= 1.2  # clipped: the range's end is rounded, with its zero point


@pytest.mark.parametrize("how", SCHEMES, ids=lambda how: how.label)
def test_zeros_stay_zero(how: How) -> None:
    weights = np.zeros((2, 64), np.float32)
    weights[1, 3] = 0.7
    codes, scales, zeros = quantise(weights, how)
    restored = values_of(codes, scales, zeros).reshape(2, 64)
    assert (restored[0] == 0).all() and (np.delete(restored[1], 3) == 0).all()
    assert restored[1, 3] == pytest.approx(0.7, rel=1e-6)


def test_too_small_for_a_half_scale_is_still_a_number() -> None:
    weights = np.full((1, 16), 1e-9, np.float32)
    codes, scales, zeros = quantise(weights, How(8, False), "float16")
    assert scales[0, 0] > 0 and np.isfinite(values_of(codes, scales, zeros)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("how", SCHEMES[:4], ids=lambda how: how.label)
def test_not_finite_is_refused(tmp_path: Path, how: How, bad: float) -> None:
    array = np.ones((4, 32), np.float32)
    array[2, 5] = bad
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        quantised_parts(stored(tmp_path, array), how)


def test_pieces_of_a_weight_are_the_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).standard_normal((40, 8, 2, 2)).astype(np.float32)
    whole = quantise(array.reshape(40, -1), How(8, False))
    monkeypatch.setattr("exporter.targets.quantisation.CHUNK", 100)
    for one, other in zip(quantised_parts(stored(tmp_path, array), How(8, False)), whole, strict=True):
        assert np.array_equal(one, other)


@given(st.lists(st.integers(0, 15), min_size=1, max_size=33))
def test_packing_is_undone(codes: list[int]) -> None:
    array = np.array(codes, np.uint8)
    assert np.array_equal(unpacked(packed(array))[: len(codes)], array)


@pytest.mark.parametrize(
    ("columns", "wanted", "group"), [(320, 64, 64), (320, 128, 64), (48, 64, 16), (40, 64, 0)]
)
def test_groups_divide_a_row(columns: int, wanted: int, group: int) -> None:
    assert fitting_group(columns, wanted) == group


@pytest.fixture(scope="module")
def components(tiny: Path) -> dict[str, Component]:
    return {component.name: component for component in components_of(resolve(tiny))}


def candidates(component: Component) -> dict[str, str]:
    kinds = {2: "matrix", 4: "convolution"}
    return {t.name: kinds[len(t.shape)] for t in component.weights.values() if len(t.shape) in kinds}


def chosen(component: Component, **options: object) -> dict[str, How]:
    return choose(component, candidates(component), WeightOptions(**options))  # type: ignore[arg-type]


def test_four_bits_for_the_matrices_of_the_denoiser_only(components: dict[str, Component]) -> None:
    found = chosen(components["unet"], weights="int4", group_size=32)
    four = {name for name, how in found.items() if how.bits == 4}
    assert four and all("attentions" in name and "proj_in" not in name.split(".")[-1] for name in four)
    assert found["time_embedding.linear_1.weight"] == found["conv_in.weight"] == How(8, False)
    for name in ("text_encoder", "vae_decoder"):
        assert {how.bits for how in chosen(components[name], weights="int4").values()} == {8}


def test_a_ratio_takes_what_loses_least(components: dict[str, Component]) -> None:
    unet = components["unet"]
    tensors = {t.name: t for t in unet.weights.values()}
    full = {n: h for n, h in chosen(unet, weights="int4", group_size=32).items() if h.bits == 4}
    part = {n: h for n, h in chosen(unet, weights="int4", group_size=32, ratio=0.4).items() if h.bits == 4}
    share = sum(tensors[n].numel for n in part) / sum(tensors[n].numel for n in full)
    assert part and 0.2 < share <= 0.4
    smallest = min(loss(tensors[n], how) for n, how in full.items())
    assert any(loss(tensors[n], how) == smallest for n, how in part.items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "int3"}, "int8"),
        ({"group_size": 64}, "--weights int4"),
        ({"weights": "int8", "group_size": 64}, "--weights int4"),
        ({"weights": "int8", "ratio": 0.5}, "--weights int4"),
        ({"weights": "int4", "group_size": 48}, "16, 32, 64"),
        ({"weights": "int4", "ratio": 0.0}, "above 0"),
        ({"weights": "int4", "ratio": float("nan")}, "above 0"),
        ({"symmetric": True}, "--weights"),
    ],
)
def test_options_that_do_not_belong_together(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        WeightOptions(**options)  # type: ignore[arg-type]
