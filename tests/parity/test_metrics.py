"""Metrics: formulas against independent ones, and the rules at their edges, as properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from exporter.parity.metrics import NotComparable, compare, histogram_edges, psnr_db, ssim

FINITE = st.floats(-1e6, 1e6, allow_subnormal=False)
SHAPES = array_shapes(min_dims=1, max_dims=4, max_side=5)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(SHAPES)
    return draw(arrays(np.float64, shape, elements=FINITE)), draw(arrays(np.float64, shape, elements=FINITE))


@given(pairs())
@settings(max_examples=150, deadline=None)
def test_formulas_against_plain_numpy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, t = pair
    m = compare(a, t)
    assert m.max_abs == np.max(np.abs(a - t))
    assert abs(a - t)[tuple(m.worst_index)] == m.max_abs
    assert (m.worst_actual, m.worst_truth) == (a[tuple(m.worst_index)], t[tuple(m.worst_index)])
    assert sum(m.histogram) == m.elements == t.size
    size = np.linalg.norm(t.ravel())
    assume(size > 1e-100)
    expected = np.linalg.norm((a - t).ravel()) / size
    assert m.relative_l2 == pytest.approx(expected, rel=1e-9)
    if expected > 0:
        assert m.sqnr_db == pytest.approx(-20 * math.log10(expected), abs=1e-6)
    other = np.linalg.norm(a.ravel())
    if other > 1e-100:
        assert m.cosine == pytest.approx(float(np.dot(a.ravel(), t.ravel()) / size / other), abs=1e-9)


@given(arrays(np.float64, SHAPES, elements=FINITE))
@settings(max_examples=60, deadline=None)
def test_an_array_equals_itself(t: np.ndarray) -> None:
    m = compare(t, t.copy())
    assert (m.max_abs, m.relative_l2, m.sqnr_db) == (0.0, 0.0, math.inf)
    assert m.cosine == pytest.approx(1.0)
    assert m.histogram[0] == t.size


@given(pairs(), st.floats(1e-3, 1e3))
@settings(max_examples=60, deadline=None)
def test_relative_metrics_do_not_depend_on_scale(pair: tuple[np.ndarray, np.ndarray], scale: float) -> None:
    a, t = pair
    assume(np.linalg.norm(t.ravel()) > 1e-6 and np.linalg.norm((a - t).ravel()) > 1e-6)
    one, two = compare(a, t), compare(a * scale, t * scale)
    assert two.relative_l2 == pytest.approx(one.relative_l2, rel=1e-6)
    assert two.cosine == pytest.approx(one.cosine, abs=1e-9)
    assert two.max_abs == pytest.approx(one.max_abs * scale, rel=1e-6)


@given(pairs(), st.sampled_from([math.nan, math.inf, -math.inf]), st.booleans(), st.data())
@settings(max_examples=80, deadline=None)
def test_one_value_that_is_not_finite_leaves_no_number(
    pair: tuple[np.ndarray, np.ndarray], bad: float, in_truth: bool, data: st.DataObject
) -> None:
    a, t = pair
    victim = t if in_truth else a
    victim.reshape(-1)[data.draw(st.integers(0, victim.size - 1))] = bad
    with pytest.raises(NotComparable, match="NaN or Inf"):
        compare(a, t)


@given(SHAPES, SHAPES)
@settings(max_examples=40, deadline=None)
def test_other_shapes_leave_no_number(one: tuple[int, ...], two: tuple[int, ...]) -> None:
    assume(one != two)
    with pytest.raises(NotComparable, match="shape"):
        compare(np.zeros(one), np.zeros(two))


def test_no_elements_leave_no_number() -> None:
    with pytest.raises(NotComparable, match="no elements"):
        compare(np.zeros((0, 3)), np.zeros((0, 3)))


def test_zero_vectors() -> None:
    zero, one = np.zeros(4), np.ones(4)
    both = compare(zero, zero)
    assert (both.relative_l2, both.cosine, both.sqnr_db) == (0.0, 1.0, math.inf)
    truth_zero = compare(one, zero)
    assert (truth_zero.relative_l2, truth_zero.cosine, truth_zero.sqnr_db) == (math.inf, 0.0, -math.inf)
    output_zero = compare(zero, one)
    assert (output_zero.relative_l2, output_zero.cosine, output_zero.sqnr_db) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_norms_neither_overflow_nor_underflow(scale: float) -> None:
    t = np.array([3.0, 4.0]) * scale
    m = compare(t * (1 + 1e-3), t)
    assert m.relative_l2 == pytest.approx(1e-3, rel=1e-6)
    assert math.isfinite(m.truth_norm)


def test_float16_is_compared_at_its_values() -> None:
    t = np.array([1.0, 1000.0, 65504.0])
    assert compare(t.astype(np.float16), t).max_abs == 0.0


def test_histogram_places() -> None:
    t = np.zeros(5)
    m = compare(np.array([0.0, 1e-13, 2e-12, 0.5, 1e9]), t)
    edges = histogram_edges()
    places = [0, 1, 2, 2 + sum(e <= 0.5 for e in edges) - 1, len(m.histogram) - 1]
    assert [i for i, n in enumerate(m.histogram) if n] == places


def test_pictures_against_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(0)
    truth = rng.random((40, 56, 3))
    for noise in (1e-4, 1e-2, 0.3):
        picture = np.clip(truth + rng.normal(0, noise, truth.shape), 0, 1)
        expected = metrics.peak_signal_noise_ratio(truth, picture, data_range=1.0)
        assert psnr_db(picture, truth) == pytest.approx(expected, abs=1e-9)
        expected = metrics.structural_similarity(truth, picture, data_range=1.0, channel_axis=2)
        assert ssim(picture, truth) == pytest.approx(expected, abs=1e-9)
    assert psnr_db(truth, truth) == math.inf
    assert ssim(truth, truth) == pytest.approx(1.0)


def test_ssim_needs_a_picture_as_large_as_its_window() -> None:
    with pytest.raises(NotComparable, match="window"):
        ssim(np.zeros((6, 9, 3)), np.zeros((6, 9, 3)))
