"""Operators that move numbers, and those that make them out of sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import core, lax

from exporter.targets.stablehlo.lowering.registry import as_dtype, dtype_of, lowers, together

LAST = (1 << 63) - 1
"""torch's word for "to the end"."""


@lowers("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default")
def view(x: Any, shape: Sequence[Any]) -> Any:
    return jnp.reshape(x, tuple(shape))


@lowers("aten.permute.default")
def permute(x: Any, dims: Sequence[int]) -> Any:
    return jnp.transpose(x, tuple(dims))


@lowers("aten.unsqueeze.default")
def unsqueeze(x: Any, dim: int) -> Any:
    return jnp.expand_dims(x, dim)


@lowers("aten.squeeze.dims", "aten.squeeze.dim")
def squeeze(x: Any, dims: Any) -> Any:
    """Takes away the named dims that are 1; a symbol counts as larger, as in torch.export."""
    given = [dims] if isinstance(dims, int) else dims
    axes = {dim % x.ndim for dim in given} if x.ndim else set()
    return lax.squeeze(
        x, sorted(axis for axis in axes if isinstance(x.shape[axis], int) and x.shape[axis] == 1)
    )


@lowers("aten.expand.default")
def expand(x: Any, sizes: Sequence[Any], *, implicit: bool = False) -> Any:
    """-1 keeps a size."""
    before = [None] * (len(sizes) - x.ndim) + list(x.shape)
    shape = [
        old if isinstance(new, int) and new == -1 else new for new, old in zip(sizes, before, strict=True)
    ]
    return jnp.broadcast_to(x, shape)


@lowers("aten.repeat.default")
def repeat(x: Any, repeats: Sequence[Any]) -> Any:
    """By broadcasting, for times may be a symbol."""
    shape = [1] * (len(repeats) - x.ndim) + list(x.shape)
    paired = [size for times, old in zip(repeats, shape, strict=True) for size in (times, old)]
    spread = jnp.reshape(x, [size for old in shape for size in (1, old)])
    whole = [times * old for times, old in zip(repeats, shape, strict=True)]
    return jnp.reshape(jnp.broadcast_to(spread, paired), whole)


@lowers("aten.cat.default")
def cat(tensors: Sequence[Any], dim: int = 0) -> Any:
    """An empty vector among others adds nothing, whatever their rank."""
    held = [x for x in tensors if not (x.ndim == 1 and x.shape[0] == 0)]
    return jnp.concatenate(together(*held), axis=dim) if held else tensors[0]


@lowers("aten.stack.default")
def stack(tensors: Sequence[Any], dim: int = 0) -> Any:
    return jnp.stack(together(*tensors), axis=dim)


@lowers("aten.split_with_sizes.default")
def split_with_sizes(x: Any, sizes: Sequence[Any], dim: int = 0) -> list[Any]:
    parts, start = [], 0
    for size in sizes:
        parts.append(lax.slice_in_dim(x, start, start + size, axis=dim))
        start = start + size
    return parts


@lowers("aten.slice.Tensor")
def slice_tensor(x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    size = x.shape[dim]
    begin = _place(0 if start is None else start, size)
    stop = size if end is None or (isinstance(end, int) and end == LAST) else _place(end, size)
    if isinstance(begin, int) and isinstance(stop, int):
        stop = max(begin, stop)
    return lax.slice_in_dim(x, begin, stop, step, axis=dim)


def _place(place: Any, size: Any) -> Any:
    """A place between 0 and the size; negative ones count from the end."""
    if isinstance(place, int) and place < 0:
        place = place + size
    if isinstance(place, int) and isinstance(size, int):
        return min(max(place, 0), size)
    if isinstance(place, int) and place == 0:
        return 0
    return core.min_dim(place, size)


@lowers("aten.select.int")
def select(x: Any, dim: int, index: Any) -> Any:
    if isinstance(index, int) and index < 0:
        index = index + x.shape[dim]
    return lax.index_in_dim(x, index, axis=dim, keepdims=False)


@lowers("aten.flip.default")
def flip(x: Any, dims: Sequence[int]) -> Any:
    return jnp.flip(x, tuple(dims))


@lowers("aten.constant_pad_nd.default")
def constant_pad(x: Any, pad: Sequence[int], value: Any = 0) -> Any:
    """Pairs for the last dims first; negative ones cut off."""
    pairs = [(low, high, 0) for low, high in zip(pad[::2], pad[1::2], strict=True)]
    config = [(0, 0, 0)] * (x.ndim - len(pairs)) + pairs[::-1]
    return lax.pad(x, as_dtype(value, x.dtype), config)


@lowers("aten.index.Tensor")
def index(x: Any, indices: Sequence[Any]) -> Any:
    """Several index tensors pick together; None takes a dim whole."""
    return x[tuple(slice(None) if one is None else one for one in indices)]


@lowers("aten.index_select.default")
def index_select(x: Any, dim: int, index: Any) -> Any:
    return jnp.take(x, index, axis=dim)


@lowers("aten.gather.default")
def gather(x: Any, dim: int, index: Any, *, sparse_grad: bool = False) -> Any:
    cut = tuple(slice(None) if axis == dim % x.ndim else slice(size) for axis, size in enumerate(index.shape))
    return jnp.take_along_axis(x[cut], index, axis=dim)


@lowers("aten.full.default")
def full(size: Sequence[Any], value: Any, *, dtype: Any = None, **_: Any) -> Any:
    return jnp.full(tuple(size), as_dtype(value, _wanted(dtype, value)))


@lowers("aten.full_like.default")
def full_like(x: Any, value: Any, *, dtype: Any = None, **_: Any) -> Any:
    return jnp.full(x.shape, value, x.dtype if dtype is None else dtype_of(dtype))


@lowers("aten.scalar_tensor.default")
def scalar_tensor(value: Any, *, dtype: Any = None, **_: Any) -> Any:
    return as_dtype(value, jnp.float32 if dtype is None else dtype_of(dtype))


@lowers("aten.arange.start_step")
def arange(start: Any, end: Any, step: Any = 1, *, dtype: Any = None, **_: Any) -> Any:
    numbers = (start, end, step)
    if dtype is None:
        kind = jnp.float32 if any(isinstance(number, float) for number in numbers) else jnp.int64
    else:
        kind = dtype_of(dtype)
    if all(isinstance(number, int | float) for number in numbers):
        return jnp.arange(start, end, step, dtype=kind)
    count = -((start - end) // step)
    return lax.iota(kind, count) * as_dtype(step, kind) + as_dtype(start, kind)


def _wanted(dtype: Any, value: Any) -> Any:
    if dtype is not None:
        return dtype_of(dtype)
    if isinstance(value, bool):
        return jnp.bool_
    return jnp.float32 if isinstance(value, float) else jnp.int64
