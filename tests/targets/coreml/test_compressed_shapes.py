"""Every operator of compressed weights against coremltools' own decompression, over drawn shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.targets.coreml.inference import assert_same, ct, ours
from tests.targets.coreml.test_compressed import packed

from coremltools.converters.mil.mil.ops.defs.iOS16 import constexpr_ops as old  # isort: skip
from coremltools.converters.mil.mil.ops.defs.iOS18 import compression as new  # isort: skip

MORE = settings(max_examples=15, deadline=None, database=None, derandomize=True)
SEEDS = st.integers(0, 2**31)
SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=4)
GRIDS = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4)
"""(blocks, size of a block) of every dim."""


def spread(grid: list[tuple[int, int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of what has one number for each block, and of the data."""
    return tuple(blocks for blocks, _ in grid), tuple(blocks * size for blocks, size in grid)


@given(seed=SEEDS, shape=SHAPES, bits=st.sampled_from([1, 2, 4, 6, 8]), half=st.booleans())
@MORE
def test_palette_of_ios16(seed: int, shape: list[int], bits: int, half: bool) -> None:
    rng = np.random.default_rng(seed)
    lut = rng.standard_normal(2**bits).astype(np.float16 if half else np.float32)
    indices = packed(rng.integers(0, 2**bits, shape).astype(np.uint8), bits)
    theirs = old.constexpr_lut_to_dense.decompress(lut, indices, np.array(shape, np.uint32))
    assert_same(ours("constexpr_lut_to_dense", indices=indices, lut=lut, shape=shape), theirs)


@given(seed=SEEDS, shape=SHAPES, data=st.data(), unsigned=st.booleans())
@MORE
def test_affine(seed: int, shape: list[int], data: st.DataObject, unsigned: bool) -> None:
    rng = np.random.default_rng(seed)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    kind, low = (np.uint8, 0) if unsigned else (np.int8, -128)
    codes = rng.integers(low, low + 256, shape).astype(kind)
    size = data.draw(st.sampled_from([(), (shape[axis],)]))
    scale = rng.uniform(0.01, 0.1, size).astype(np.float32)
    zero = rng.integers(low, low + 256, size).astype(kind)
    theirs = old.constexpr_affine_dequantize.decompress(codes, zero, scale, axis)
    given_ = {"quantized_data": codes, "zero_point": zero, "scale": scale, "axis": axis}
    assert_same(ours("constexpr_affine_dequantize", **given_), theirs)


@given(seed=SEEDS, shape=SHAPES, share=st.floats(0, 1))
@MORE
def test_sparse_of_both(seed: int, shape: list[int], share: float) -> None:
    rng = np.random.default_rng(seed)
    mask = (rng.random(shape) < share).astype(np.uint8)
    values = rng.standard_normal(int(mask.sum())).astype(np.float32)
    theirs = new.constexpr_sparse_to_dense.decompress(values, mask)
    assert_same(ours("constexpr_sparse_to_dense", nonzero_data=values, mask=mask), theirs)
    bits = packed(mask, 1)
    padded = np.unpackbits(bits, bitorder="little")
    assert padded.size >= mask.size  # coremltools' own takes whole bytes only
    if padded.size == mask.size:
        theirs = old.constexpr_sparse_to_dense.decompress(values, bits, shape)
    assert_same(ours("constexpr_sparse_to_dense", nonzero_data=values, mask=bits, shape=shape), theirs)


@given(
    seed=SEEDS, grid=GRIDS, bits=st.sampled_from([1, 2, 3, 4, 6, 8]), vector=st.integers(1, 3), data=st.data()
)
@MORE
def test_palette_of_ios18(
    seed: int, grid: list[tuple[int, int]], bits: int, vector: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    groups, shape = spread(grid)
    lut = rng.standard_normal((*groups, 2**bits, vector)).astype(np.float32)
    places = rng.integers(0, 2**bits, shape).astype(np.uint8)
    axis = data.draw(st.integers(0, len(shape) - 1)) if vector > 1 else None
    theirs = new.constexpr_lut_to_dense.decompress(places, lut, axis)
    more: dict[str, Any] = {} if axis is None else {"vector_axis": axis}
    assert_same(ours("constexpr_lut_to_dense", indices=places, lut=lut, **more), theirs)
    mask = (rng.random(shape) < 0.6).astype(np.uint8)
    found, numbers = ours(
        "constexpr_lut_to_sparse", indices_mask=mask, indices_nonzero_data=places[mask != 0], lut=lut, **more
    )
    their_mask, theirs = new.constexpr_lut_to_sparse.decompress(mask, places[mask != 0], lut, axis)
    assert np.array_equal(found, their_mask)
    assert_same(numbers, theirs)


@given(seed=SEEDS, grid=GRIDS, bits=st.sampled_from([4, 8]), unsigned=st.booleans(), shifted=st.booleans())
@MORE
def test_blockwise(seed: int, grid: list[tuple[int, int]], bits: int, unsigned: bool, shifted: bool) -> None:
    rng = np.random.default_rng(seed)
    blocks, shape = spread(grid)
    low = 0 if unsigned else -(2 ** (bits - 1))
    kind = np.uint8 if unsigned else np.int8
    codes = rng.integers(low, low + 2**bits, shape).astype(kind)
    scale = rng.uniform(0.01, 0.1, blocks).astype(np.float32)
    offset = rng.integers(low, low + 2**bits, blocks).astype(kind) if shifted else None
    theirs = new.constexpr_blockwise_shift_scale.decompress(codes, scale, offset)
    more = {} if offset is None else {"offset": offset}
    assert_same(ours("constexpr_blockwise_shift_scale", data=codes, scale=scale, **more), theirs)
    mask = (rng.random(shape) < 0.6).astype(np.uint8)
    given_ = {"data_mask": mask, "nonzero_data": codes[mask != 0], "scale": scale}
    found, numbers = ours("constexpr_sparse_blockwise_shift_scale", **given_, **more)
    their_mask, theirs = new.constexpr_sparse_blockwise_shift_scale.decompress(
        mask, codes[mask != 0], scale, offset
    )
    assert np.array_equal(found, their_mask)
    assert_same(numbers, theirs)


@pytest.mark.parametrize("system", ["iOS16", "iOS18"])
@given(seed=SEEDS, shape=SHAPES)
@MORE
def test_cast(system: str, seed: int, shape: list[int]) -> None:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float16)
    found: list[Any] = []
    from coremltools.converters.mil import Builder as mb  # noqa: N813

    @mb.program(input_specs=[mb.TensorSpec(shape=(1,))], opset_version=getattr(ct.target, system))
    def program(x: Any) -> Any:
        found.append(mb.constexpr_cast(source_val=values, output_dtype="fp32"))
        return mb.identity(x=x)

    theirs = found[0].op.materialized_val_inference()
    assert_same(ours("constexpr_cast", source_val=values, output_dtype="fp32"), theirs)
