"""Weights that are stored smaller than they are used: palettes, integers, sparse tensors.

The iOS 16 forms keep packed numbers and a shape; the iOS 18 forms keep tensors of sub-byte integers and
work in blocks. Definitions: `coremltools.converters.mil.mil.ops.defs.iOS16.constexpr_ops` and `.iOS18.
compression`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from exporter.errors import ArtifactError
from exporter.targets.coreml.interpreter.blob import unpack_bits
from exporter.targets.coreml.interpreter.registry import number, numbers, operation

Tensor = torch.Tensor


@operation("constexpr_cast")
def constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    return source_val.to({"fp32": torch.float32, "fp16": torch.float16}[output_dtype])


@operation("constexpr_affine_dequantize")
def constexpr_affine_dequantize(
    quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: Any
) -> Tensor:
    """(data - zero point) × scale, with one pair for the tensor or one for every place on `axis`."""
    shape = [1] * quantized_data.dim()
    shape[int(number(axis))] = -1

    def spread(value: Tensor) -> Tensor:
        return value.reshape(shape) if value.dim() else value

    return (quantized_data.float() - spread(zero_point).float()) * spread(scale)


@operation("constexpr_lut_to_dense")
def constexpr_lut_to_dense(
    indices: Tensor, lut: Tensor, shape: Tensor | None = None, vector_axis: Any = None
) -> Tensor:
    """Numbers of a palette by their places in it; `shape` comes with the iOS 16 form."""
    if shape is None:
        return _palette(indices, lut, vector_axis)
    sizes = numbers(shape)
    bits = (lut.numel() - 1).bit_length()
    places = unpack_bits(indices.numpy(), bits, math.prod(sizes))
    return lut[torch.from_numpy(places).long()].reshape(sizes)


def _palette(indices: Tensor, lut: Tensor, vector_axis: Any) -> Tensor:
    """The iOS 18 form: `lut` is (groups of every dim …, entries, vector size).

    With vectors of size v, every index names v neighbours along `vector_axis`.
    """
    rank = indices.dim()
    entries, vector = lut.shape[-2], lut.shape[-1]
    grid = list(lut.shape[:rank])
    sizes = [size // groups for size, groups in zip(indices.shape, grid, strict=True)]
    if any(s * g != n for s, g, n in zip(sizes, grid, indices.shape, strict=True)):
        raise ArtifactError(f"a palette of {grid} groups does not divide indices of {list(indices.shape)}.")
    group = torch.arange(math.prod(grid)).reshape(grid)
    for axis, size in enumerate(sizes):
        group = group.repeat_interleave(size, dim=axis)
    values = lut.reshape(-1, vector)[group * entries + indices.long()]  # (*indices, vector)
    if vector == 1:
        return values.squeeze(-1)
    axis = int(number(vector_axis)) % rank
    return values.movedim(-1, axis + 1).flatten(axis, axis + 1)


@operation("constexpr_blockwise_shift_scale")
def constexpr_blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """(data - offset) × scale, each entry of `scale` for one block of `data`."""
    shifted = data.float()
    if offset is not None:
        shifted = shifted - _blocks(offset.float(), data.shape)
    return shifted * _blocks(scale, data.shape)


def _blocks(values: Tensor, shape: torch.Size) -> Tensor:
    for axis, size in enumerate(shape):
        repeat, rest = divmod(size, values.shape[axis])
        if rest:
            raise ArtifactError(f"{values.shape[axis]} blocks do not divide a dim of {size}.")
        if repeat > 1 and values.shape[axis] > 1:
            values = values.repeat_interleave(repeat, dim=axis)
    return values


@operation("constexpr_sparse_to_dense")
def constexpr_sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: Tensor | None = None) -> Tensor:
    """Numbers at the places of a mask, zero elsewhere; `shape` comes with the iOS 16 form (packed mask)."""
    if shape is not None:
        sizes = numbers(shape)
        mask = torch.from_numpy(np.ascontiguousarray(unpack_bits(mask.numpy(), 1, math.prod(sizes)))).reshape(
            sizes
        )
    dense = torch.zeros(mask.shape, dtype=nonzero_data.dtype)
    places = mask.bool()
    if int(places.sum()) != nonzero_data.numel():
        raise ArtifactError(f"a mask of {int(places.sum())} places for {nonzero_data.numel()} numbers.")
    dense[places] = nonzero_data
    return dense


@operation("constexpr_lut_to_sparse")
def constexpr_lut_to_sparse(
    indices_mask: Tensor, indices_nonzero_data: Tensor, lut: Tensor, vector_axis: Any = None
) -> tuple[Tensor, Tensor]:
    """A sparse tensor of palette places → (mask, nonzero numbers)."""
    dense = _palette(constexpr_sparse_to_dense(indices_nonzero_data, indices_mask), lut, vector_axis)
    mask = indices_mask
    if lut.shape[-1] > 1:
        mask = mask.repeat_interleave(lut.shape[-1], dim=int(number(vector_axis)))
    return mask, dense[mask.bool()]


@operation("constexpr_sparse_blockwise_shift_scale")
def constexpr_sparse_blockwise_shift_scale(
    data_mask: Tensor, nonzero_data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Blockwise numbers of a sparse tensor → (mask, nonzero numbers)."""
    dense = constexpr_sparse_to_dense(nonzero_data, data_mask)
    return data_mask, constexpr_blockwise_shift_scale(dense, scale, offset)[data_mask.bool()]
