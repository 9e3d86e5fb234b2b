"""The roundings themselves, against coremltools' own and against what is best."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.errors import CheckpointError
from exporter.targets.coreml.interpreter.blob import unpack_bits
from exporter.targets.coreml.palettes import (
    PALETTE_BITS,
    noise_ratio,
    packed,
    palettise,
    to_integers,
)

FEW = settings(max_examples=8, deadline=None, database=None, derandomize=True)
SHAPES = st.lists(st.integers(1, 9), min_size=2, max_size=4)


def noise(seed: int, shape: list[int], heavy: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, shape) if heavy else rng.standard_normal(shape)
    return (values * 0.05).astype(np.float32)


@pytest.mark.parametrize("bits", PALETTE_BITS)
@given(seed=st.integers(0, 999), shape=SHAPES, heavy=st.booleans())
@FEW
def test_every_code_is_the_nearest(bits: int, seed: int, shape: list[int], heavy: bool) -> None:
    values = noise(seed, shape, heavy)
    palette = palettise(values, bits)
    assert palette.table.shape == (2**bits,) and palette.table.dtype == np.float16
    assert palette.codes.shape == values.shape and palette.codes.max(initial=0) < 2**bits
    distances = np.abs(values[..., None].astype(np.float64) - palette.table.astype(np.float64))
    own = np.abs(values.astype(np.float64) - palette.values().astype(np.float64))
    assert np.all(own <= distances.min(axis=-1) + 1e-12)


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
@pytest.mark.parametrize("heavy", [False, True])
def test_palettes_are_as_good_as_coremltools(bits: int, heavy: bool) -> None:
    """coremltools clusters large float16 weights exactly (kmeans1d)."""
    from coremltools.optimize.coreml._quantization_passes import palettize_weights

    values = noise(1, [120, 100], heavy).astype(np.float16)
    theirs = palettize_weights.blockwise_compress(values, "KMEANS", bits, [0, 0])
    best = noise_ratio(values.astype(np.float32), palettize_weights.decompress(theirs).astype(np.float32))
    mine = palettise(values.astype(np.float32), bits)
    assert noise_ratio(values.astype(np.float32), mine.values()) <= 1.08 * best


def test_a_weight_of_few_numbers_is_kept_exactly() -> None:
    values = np.array([[0.5, -1.0], [2.0, 0.5]], np.float32)
    assert np.array_equal(palettise(values, 2).values(), values)
    assert np.array_equal(palettise(np.zeros((3, 4), np.float32), 1).values(), np.zeros((3, 4)))


@pytest.mark.parametrize("kind", ["int8", "int4"])
@given(seed=st.integers(0, 999), rows=st.integers(1, 6), columns=st.sampled_from([3, 8, 48, 64]))
@FEW
def test_integers_are_coremltools(kind: str, seed: int, rows: int, columns: int) -> None:
    """Codes and scales as coremltools' linear_symmetric gives them, where float16 scales leave no doubt."""
    from coremltools.converters.mil.mil import types
    from coremltools.optimize._utils import compute_qparams_by_dtype

    values = noise(seed, [rows, columns, 3, 3])
    mine = to_integers(values, kind, "float32")  # type: ignore[arg-type]
    size = columns // mine.scales.shape[1]
    blocks = [1, size if kind == "int4" else 0, 0, 0]
    dtype = types.string_to_builtin(kind)
    theirs, scales, _ = compute_qparams_by_dtype(values, dtype, "LINEAR_SYMMETRIC", blocks)
    assert np.allclose(mine.scales, scales, rtol=1e-6)
    assert np.abs(mine.codes.astype(int) - np.asarray(theirs).astype(int)).max() <= 1
    assert (mine.codes == np.asarray(theirs)).mean() > 0.999
    steps = np.abs(mine.values() - values) / np.repeat(mine.scales, size, axis=1)
    assert steps.max() <= 0.5001


def test_int4_blocks_divide_the_row() -> None:
    assert to_integers(noise(0, [4, 64]), "int4").scales.shape == (4, 2)
    assert to_integers(noise(0, [4, 48]), "int4").scales.shape == (4, 3)
    assert to_integers(noise(0, [4, 5, 3, 3]), "int4").scales.shape == (4, 1, 1, 1)
    assert to_integers(noise(0, [4, 64]), "int8").scales.shape == (4, 1)


def test_rows_of_zeros_have_codes_of_zero() -> None:
    values = np.zeros((2, 8), np.float32)
    values[1] = 1e-12  # too small for float16's smallest scale
    small = to_integers(values, "int8")
    assert np.isfinite(small.values()).all() and not small.values()[0].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_what_cannot_be_stored_is_refused(bad: float) -> None:
    values = noise(0, [4, 8])
    values[1, 2] = bad
    for attempt in (lambda: palettise(values, 4), lambda: to_integers(values, "int8")):
        with pytest.raises(CheckpointError, match="cannot be compressed"):
            attempt()


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
@given(seed=st.integers(0, 999), count=st.integers(1, 50))
@FEW
def test_codes_are_packed_as_the_interpreter_unpacks_them(bits: int, seed: int, count: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, count).astype(np.uint8)
    raw = packed(codes, bits)
    assert raw.size == -(-count * bits // 8)
    assert np.array_equal(unpack_bits(raw, bits, count), codes)
    signed = (codes.astype(int) - 2 ** (bits - 1)).astype(np.int8)
    assert np.array_equal(unpack_bits(packed(signed, bits), bits, count, signed=True), signed)
