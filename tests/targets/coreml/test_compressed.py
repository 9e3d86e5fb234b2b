"""Compressed weights against coremltools' own decompression."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.errors import ArtifactError
from exporter.targets.coreml.interpreter.blob import unpack_bits
from exporter.targets.coreml.interpreter.machine import OPERATIONS
from tests.targets.coreml.inference import assert_same, ct, infer, ours

FEW = settings(max_examples=6, deadline=None, database=None, derandomize=True)
SEEDS = st.integers(0, 2**31)


def packed(values: np.ndarray, bits: int) -> np.ndarray:
    """The lowest bits first, as Core ML stores them."""
    flat = (values.reshape(-1, 1).astype(np.uint16) >> np.arange(bits)) & 1
    return np.packbits(flat.astype(np.uint8).reshape(-1), bitorder="little")


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@given(seed=SEEDS, count=st.integers(1, 40))
@FEW
def test_bits_are_unpacked(bits: int, seed: int, count: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2**bits, count).astype(np.uint8)
    assert np.array_equal(unpack_bits(packed(values, bits), bits, count), values)
    signed = unpack_bits(packed(values, bits), bits, count, signed=True)
    assert np.array_equal(signed, np.where(values >= 2 ** (bits - 1), values.astype(int) - 2**bits, values))


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
@given(seed=SEEDS)
@FEW
def test_palette_of_ios16(bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lut = rng.standard_normal(2**bits).astype(np.float32)
    places = rng.integers(0, 2**bits, (3, 5)).astype(np.uint8)
    given_ = {"indices": packed(places, bits), "lut": lut, "shape": np.array([3, 5], np.uint32)}
    theirs = infer("constexpr_lut_to_dense", opset=ct.target.iOS16, **given_)
    theirs = lut[places] if theirs is None else theirs
    assert_same(ours("constexpr_lut_to_dense", **(given_ | {"shape": [3, 5]})), theirs)


@given(seed=SEEDS, axis=st.integers(0, 1), whole=st.booleans())
@FEW
def test_affine(seed: int, axis: int, whole: bool) -> None:
    rng = np.random.default_rng(seed)
    data = rng.integers(-128, 128, (3, 4)).astype(np.int8)
    size = () if whole else (data.shape[axis],)
    scale = rng.uniform(0.01, 0.1, size).astype(np.float32)
    zero = rng.integers(-5, 5, size).astype(np.int8)
    shape = [1, 1]
    shape[axis] = 1 if whole else -1
    expected = (data.astype(np.float64) - zero.reshape(shape)) * scale.reshape(shape)
    mine = ours("constexpr_affine_dequantize", quantized_data=data, zero_point=zero, scale=scale, axis=axis)
    assert_same(mine, expected)


@pytest.mark.parametrize("groups", [(1, 1), (2, 1), (1, 3), (2, 3)])
@pytest.mark.parametrize("vector", [1, 2])
@given(seed=SEEDS, bits=st.sampled_from([1, 2, 4]))
@FEW
def test_palette_of_ios18(groups: tuple[int, int], vector: int, seed: int, bits: int) -> None:
    """Grouped and vector palettes against the class that coremltools evaluates them with."""
    from coremltools.converters.mil.mil.ops.defs.iOS18.compression import constexpr_lut_to_dense

    rng = np.random.default_rng(seed)
    lut = rng.standard_normal((*groups, 2**bits, vector)).astype(np.float32)
    places = rng.integers(0, 2**bits, (4, 6)).astype(np.uint8)
    axis = 0 if vector > 1 else None
    theirs = constexpr_lut_to_dense.decompress(places, lut, axis)
    more = {} if axis is None else {"vector_axis": axis}
    assert_same(ours("constexpr_lut_to_dense", indices=places, lut=lut, **more), theirs)


@given(seed=SEEDS, blocks=st.sampled_from([(1, 1), (4, 1), (2, 3), (4, 6)]), shifted=st.booleans())
@FEW
def test_blockwise(seed: int, blocks: tuple[int, int], shifted: bool) -> None:
    from coremltools.converters.mil.mil.ops.defs.iOS18.compression import constexpr_blockwise_shift_scale

    rng = np.random.default_rng(seed)
    data = rng.integers(-128, 128, (4, 6)).astype(np.int8)
    scale = rng.uniform(0.01, 0.1, blocks).astype(np.float32)
    offset = rng.integers(-5, 5, blocks).astype(np.int8) if shifted else None
    theirs = constexpr_blockwise_shift_scale.decompress(data, scale, offset)
    more = {} if offset is None else {"offset": offset}
    assert_same(ours("constexpr_blockwise_shift_scale", data=data, scale=scale, **more), theirs)


@given(seed=SEEDS)
@FEW
def test_sparse(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dense = rng.standard_normal((4, 6)).astype(np.float32) * (rng.random((4, 6)) > 0.5)
    mask, values = (dense != 0).astype(np.uint8), dense[dense != 0]
    assert_same(ours("constexpr_sparse_to_dense", nonzero_data=values, mask=mask), dense)
    given_ = {"nonzero_data": values, "mask": packed(mask, 1), "shape": [4, 6]}
    assert_same(ours("constexpr_sparse_to_dense", **given_), dense)
    lut = rng.standard_normal((1, 1, 4, 1)).astype(np.float32)
    places = rng.integers(0, 4, values.size).astype(np.uint8)
    found, numbers = ours("constexpr_lut_to_sparse", indices_mask=mask, indices_nonzero_data=places, lut=lut)
    assert np.array_equal(found, mask) and np.array_equal(numbers, lut.reshape(-1)[places])
    scale = rng.uniform(0.01, 0.1, (4, 1)).astype(np.float32)
    _, numbers = ours(
        "constexpr_sparse_blockwise_shift_scale", data_mask=mask,
        nonzero_data=places.astype(np.int8), scale=scale,
    )  # fmt: skip
    assert_same(numbers, (places * np.repeat(scale, 6, 1)[mask.astype(bool)]).astype(np.float32))


def test_cast_of_a_constant() -> None:
    x = np.array([1.5, -2.25], np.float16)
    mine = ours("constexpr_cast", source_val=x, output_dtype="fp32")
    assert mine.dtype == np.float32 and np.array_equal(mine, x.astype(np.float32))


def test_what_does_not_go_together_is_an_error() -> None:
    with pytest.raises(ArtifactError, match="places for 3 numbers"):
        OPERATIONS["constexpr_sparse_to_dense"](nonzero_data=torch.ones(3), mask=torch.ones(2, 2))
    with pytest.raises(ArtifactError, match="does not divide"):
        OPERATIONS["constexpr_lut_to_dense"](
            indices=torch.zeros(4, 6, dtype=torch.uint8), lut=torch.zeros(3, 1, 2, 1)
        )
    with pytest.raises(ArtifactError, match="do not divide"):
        OPERATIONS["constexpr_blockwise_shift_scale"](data=torch.zeros(4, 6), scale=torch.ones(3, 1))
