"""Operations that move numbers and compute none."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional

from exporter.errors import ArtifactError
from exporter.targets.coreml.interpreter.registry import OPERATIONS, flag, flags, number, numbers, operation

Tensor = torch.Tensor


@operation("reshape")
def reshape(x: Tensor, shape: Tensor) -> Tensor:
    """A 0 keeps the dim of the input, -1 is what is left."""
    wanted = [x.shape[i] if size == 0 else size for i, size in enumerate(numbers(shape))]
    return x.reshape(wanted)


@operation("transpose")
def transpose(x: Tensor, perm: Tensor) -> Tensor:
    return x.permute(numbers(perm))


@operation("expand_dims")
def expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    rank = x.dim() + len(numbers(axes))
    for axis in sorted(a % rank for a in numbers(axes)):
        x = x.unsqueeze(axis)
    return x


@operation("squeeze")
def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(a % x.dim() for a in numbers(axes)))


@operation("concat")
def concat(values: tuple[Tensor, ...], axis: Any, interleave: Any = False) -> Tensor:
    axis = number(axis)
    if not flag(interleave):
        return torch.cat(values, dim=axis)
    axis %= values[0].dim()
    return torch.stack(values, dim=axis + 1).flatten(axis, axis + 1)


@operation("stack")
def stack(values: tuple[Tensor, ...], axis: Any) -> Tensor:
    return torch.stack(values, dim=number(axis))


@operation("split")
def split(
    x: Tensor, axis: Any, num_splits: Any = None, split_sizes: Tensor | None = None
) -> tuple[Tensor, ...]:
    axis = number(axis)
    if split_sizes is not None:
        return torch.split(x, numbers(split_sizes), dim=axis)
    size, rest = divmod(x.shape[axis], int(number(num_splits)))
    if rest:
        raise ArtifactError(f"split: {x.shape[axis]} does not divide into {number(num_splits)} parts.")
    return torch.split(x, size, dim=axis)


@operation("slice_by_index")
def slice_by_index(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    """numpy's slicing: a mask ignores its bound, `squeeze_mask` takes one index and drops the dim."""
    rank = x.dim()
    starts, ends = numbers(begin), numbers(end)
    steps = numbers(stride) if stride is not None else [1] * rank
    no_start, no_end, drop = flags(begin_mask, rank), flags(end_mask, rank), flags(squeeze_mask, rank)
    index: list[Any] = []
    reversed_dims = []
    for axis in range(rank):
        if drop[axis]:
            index.append(0 if no_start[axis] else starts[axis])
            continue
        bounds = slice(
            None if no_start[axis] else starts[axis], None if no_end[axis] else ends[axis], steps[axis]
        )
        places = range(*bounds.indices(x.shape[axis]))
        if steps[axis] < 0:  # torch knows no negative steps
            reversed_dims.append(len([i for i in index if isinstance(i, slice)]))
            bounds = slice(places[-1], places[0] + 1, -steps[axis]) if len(places) else slice(0, 0)
        else:
            bounds = slice(places.start, max(places.stop, places.start), places.step)
        index.append(bounds)
    result = x[tuple(index)]
    return result.flip(reversed_dims) if reversed_dims else result


@operation("slice_by_size")
def slice_by_size(x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    for axis, (first, count) in enumerate(zip(numbers(begin), numbers(size), strict=True)):
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


@operation("gather")
def gather(
    x: Tensor, indices: Tensor, axis: Any = 0, batch_dims: Any = 0, validate_indices: Any = False
) -> Tensor:
    """`x[..., indices, ...]` along one axis; negative indices count from the end."""
    axis, batch = int(number(axis)) % x.dim(), int(number(batch_dims))
    size = x.shape[axis]
    if indices.numel() and not (int(indices.min()) >= -size and int(indices.max()) < size):
        raise ArtifactError(f"gather: an index outside {size} entries.")
    indices = torch.where(indices < 0, indices + size, indices).long()
    if batch == 0:
        picked = x.index_select(axis, indices.reshape(-1))
        return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    rows = [
        gather(part, places, axis - batch)
        for part, places in zip(x.flatten(0, batch - 1), indices.flatten(0, batch - 1), strict=True)
    ]
    return torch.stack(rows).unflatten(0, x.shape[:batch])


@operation("gather_along_axis")
def gather_along_axis(x: Tensor, indices: Tensor, axis: Any = 0, validate_indices: Any = False) -> Tensor:
    axis = int(number(axis)) % x.dim()
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices).long())


@operation("gather_nd")
def gather_nd(x: Tensor, indices: Tensor, batch_dims: Any = 0, validate_indices: Any = False) -> Tensor:
    """The last dim of `indices` is a place in the first dims of `x`."""
    batch = int(number(batch_dims))
    if batch:
        rows = [
            gather_nd(part, places)
            for part, places in zip(x.flatten(0, batch - 1), indices.flatten(0, batch - 1), strict=True)
        ]
        return torch.stack(rows).unflatten(0, x.shape[:batch])
    places = [indices[..., i].long() for i in range(indices.shape[-1])]
    for axis, place in enumerate(places):
        size = x.shape[axis]
        if place.numel() and not (int(place.min()) >= -size and int(place.max()) < size):
            raise ArtifactError(f"gather_nd: an index outside {size} entries.")
    return x[tuple(places)]


@operation("pad")
def pad(x: Tensor, pad: Tensor, mode: str = "constant", constant_val: Any = 0.0) -> Tensor:
    """`pad` holds before and after of the last dims, in their order."""
    sizes = numbers(pad)
    pairs = [sizes[i : i + 2] for i in range(0, len(sizes), 2)]
    while pairs and len(pairs) > 1 and mode != "constant" and pairs[0] == [0, 0]:
        pairs = pairs[1:]
    flat = [size for pair in reversed(pairs) for size in pair]
    if mode == "constant":
        return functional.pad(x, flat, value=float(number(constant_val)))
    if mode not in ("reflect", "replicate"):
        raise ArtifactError(f"pad has no mode {mode!r}.")
    kept = len(pairs)
    lead = x.shape[: x.dim() - kept]
    wide = x.reshape(1, -1, *x.shape[x.dim() - kept :])
    return functional.pad(wide, flat, mode=mode).reshape(
        *lead, *(x.shape[x.dim() - kept + i] + sum(pair) for i, pair in enumerate(pairs))
    )


@operation("tile")
def tile(x: Tensor, reps: Tensor) -> Tensor:
    return x.repeat(numbers(reps))


@operation("reverse")
def reverse(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.flip(list(range(x.dim())) if axes is None else numbers(axes))


@operation("shape")
def shape(x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int32)


@operation("fill")
def fill(shape: Tensor, value: Any = 0.0) -> Tensor:
    kind = value.dtype if isinstance(value, Tensor) else torch.float32
    return torch.full(numbers(shape), number(value), dtype=kind)


@operation("upsample_nearest_neighbor")
def upsample_nearest_neighbor(x: Tensor, scale_factor_height: Any = 1, scale_factor_width: Any = 1) -> Tensor:
    high, wide = number(scale_factor_height), number(scale_factor_width)
    if high == int(high) and wide == int(wide):
        return x.repeat_interleave(int(high), dim=-2).repeat_interleave(int(wide), dim=-1)
    size = [int(x.shape[-2] * high), int(x.shape[-1] * wide)]
    return functional.interpolate(x, size=size, mode="nearest")


MOVES = frozenset(name for name, function in OPERATIONS.items() if function.__module__ == __name__)
"""Everything above: no number that comes out was not there before."""
