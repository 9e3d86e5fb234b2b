"""Operators that move, cut and join, but compute nothing.

Each function takes the emitter, the traced node, and the node's arguments with tensors replaced by what
they became. Semantics are those of torch's `aten` operators of that name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch.fx import Node

from exporter.graph.direct.emitter import Emitter, NotCovered, Operand, same_dim, same_shape

END = (1 << 63) - 1


def _shape(node: Node) -> tuple:
    return tuple(node.meta["val"].shape)


def _before(emitter: Emitter, node: Node) -> tuple:
    return tuple(emitter.fake(node.args[0]).shape)


def identity(emitter: Emitter, node: Node, x: Operand, *rest: Any, **options: Any) -> Operand:
    return x


def dropout(emitter: Emitter, node: Node, x: Operand, p: float, train: bool) -> Operand:
    if train and p:
        raise NotCovered("dropout in training mode")
    return x


def view(emitter: Emitter, node: Node, x: Operand, *sizes: Any, **options: Any) -> Operand:
    before, after = _before(emitter, node), _shape(node)
    try:
        return emitter.reshape(x, before, after)
    except NotCovered:
        if len(after) == 1:
            return emitter.emit("Reshape", [x, emitter.ints([-1])])
        if not sizes or not isinstance(sizes[0], list | tuple):
            raise
    # A 0 copies the input's size, which need not be asked for then.
    kept = [same_dim(one, other) for one, other in zip(before, after, strict=False)]
    wanted = [0 if place < len(kept) and kept[place] else size for place, size in enumerate(sizes[0])]
    return emitter.emit("Reshape", [x, emitter.sizes(wanted)])


def permute(emitter: Emitter, node: Node, x: Operand, axes: list[int]) -> Operand:
    rank = len(_shape(node))
    return emitter.permute(x, [axis % rank for axis in axes])


def transpose(emitter: Emitter, node: Node, x: Operand, one: int, other: int) -> Operand:
    rank = len(_shape(node))
    axes = list(range(rank))
    axes[one % rank], axes[other % rank] = axes[other % rank], axes[one % rank]
    return emitter.permute(x, axes)


def move(emitter: Emitter, node: Node, x: Operand, source: int, target: int) -> Operand:
    rank = len(_shape(node))
    axes = [axis for axis in range(rank) if axis != source % rank]
    axes.insert(target % rank, source % rank)
    return emitter.permute(x, axes)


def pixel_shuffle(emitter: Emitter, node: Node, x: Operand, factor: int) -> Operand:
    """Channels become pixels: of each pixel's `factor`² ones, the channel counts most."""
    return emitter.emit("DepthToSpace", [x], {"blocksize": factor, "mode": "CRD"})


def pixel_unshuffle(emitter: Emitter, node: Node, x: Operand, factor: int) -> Operand:
    """Pixels become channels, each channel by itself: ONNX counts the pixel's place most, torch the channel.

    Sorting all of them afterwards (a Gather) came out wrong in OpenVINO 2026.4.1 with 768 of them.
    """
    channels = _before(emitter, node)[1]
    if not isinstance(channels, int):
        raise NotCovered("pixels to an unknown number of channels")
    if channels == 1:
        return emitter.emit("SpaceToDepth", [x], {"blocksize": factor})
    each = emitter.emit("Reshape", [x, emitter.ints([-1, 1, 0, 0])])
    deep = emitter.emit("SpaceToDepth", [each], {"blocksize": factor})
    return emitter.emit("Reshape", [deep, emitter.ints([-1, channels * factor**2, 0, 0])])


def unsqueeze(emitter: Emitter, node: Node, x: Operand, axis: int) -> Operand:
    """A new axis; several in a row are one node."""
    axes = [axis % len(_shape(node))]
    producer = x.producer() if isinstance(x, ir.Value) else None
    if producer is not None and producer.op_type == "Unsqueeze" and producer.domain == "":
        base, places = producer.inputs
        assert base is not None and places is not None
        if places.const_value is not None:
            earlier = places.const_value.numpy().reshape(-1)
            x, axes = base, sorted([*axes, *(int(n) + (n >= axes[0]) for n in earlier)])
    return emitter.emit("Unsqueeze", [x, emitter.ints(axes)])


def squeeze(emitter: Emitter, node: Node, x: Operand, axis: int) -> Operand:
    before = _before(emitter, node)
    if same_shape(before, _shape(node)):
        return x
    if before[axis] != 1:
        raise NotCovered("squeeze of an axis that is not 1")
    return emitter.emit("Squeeze", [x, emitter.ints([axis % len(before)])])


def expand(emitter: Emitter, node: Node, x: Operand, sizes: list[Any], **options: Any) -> Operand:
    """Broadcast; ONNX keeps an axis where the wanted size is 1."""
    before, after = _before(emitter, node), _shape(node)
    if same_shape(before, after):
        return x
    ahead = len(after) - len(before)
    wanted = []
    for axis, size in enumerate(sizes):
        kept = axis >= ahead and same_dim(before[axis - ahead], after[axis])
        wanted.append(1 if kept or (isinstance(size, int) and size == -1) else size)
    return emitter.emit("Expand", [x, emitter.sizes(wanted)])


def slice_(
    emitter: Emitter, node: Node, x: Operand, axis: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Operand:
    if same_shape(_before(emitter, node), _shape(node)) and step == 1:
        return x
    if not isinstance(step, int) or step < 1:
        raise NotCovered("a slice with a negative step")
    begin, stop = (_number(node, place, given) for place, given in ((2, start), (3, end)))
    return emitter.emit(
        "Slice",
        [
            x,
            emitter.sizes([0 if begin is None else begin]),
            emitter.sizes([END if stop is None else stop]),
            emitter.ints([axis]),
            emitter.ints([step]),
        ],
    )


def _number(node: Node, place: int, given: Any) -> Any:
    """An argument as it was traced, for `sizes()`: sizes that were computed come replaced by values here."""
    if not isinstance(given, ir.Value):
        return given
    return node.args[place]


def select(emitter: Emitter, node: Node, x: Operand, axis: int, index: int) -> Operand:
    if not isinstance(index, int):
        raise NotCovered("select by a computed index")
    rank = len(_before(emitter, node))
    return emitter.emit("Gather", [x, torch.tensor(index)], {"axis": axis % rank})


def cat(emitter: Emitter, node: Node, tensors: list[Node], axis: int = 0) -> Operand:
    dtype = node.meta["val"].dtype
    parts = [emitter.cast(emitter.env[each], dtype, emitter.fake(each).dtype) for each in tensors]
    return emitter.emit("Concat", parts, {"axis": axis % len(_shape(node))})


def stack(emitter: Emitter, node: Node, tensors: list[Node], axis: int = 0) -> Operand:
    place = emitter.ints([axis % len(_shape(node))])
    parts = [emitter.emit("Unsqueeze", [emitter.env[each], place]) for each in tensors]
    return emitter.emit("Concat", parts, {"axis": axis % len(_shape(node))})


def chunk(emitter: Emitter, node: Node, x: Operand, number: int, axis: int = 0) -> list[Operand]:
    fakes = node.meta["val"]
    axis %= len(fakes[0].shape)
    lengths = [each.shape[axis] for each in fakes]
    if not all(isinstance(length, int) for length in lengths):
        raise NotCovered("chunks of unknown length")
    if len(lengths) == 1:
        return [x]
    return emitter.emit("Split", [x, emitter.ints(lengths)], {"axis": axis}, outputs=len(lengths))


def split(emitter: Emitter, node: Node, x: Operand, lengths: list[Any], axis: int = 0) -> list[Operand]:
    fakes = node.meta["val"]
    return emitter.emit(
        "Split", [x, emitter.sizes(lengths)], {"axis": axis % len(fakes[0].shape)}, outputs=len(fakes)
    )


def unbind(emitter: Emitter, node: Node, x: Operand, axis: int = 0) -> list[Operand]:
    count, rank = len(node.meta["val"]), len(_before(emitter, node))
    axis %= rank
    if count == 1:
        return [emitter.emit("Squeeze", [x, emitter.ints([axis])])]
    parts = emitter.emit("Split", [x, emitter.ints([1] * count)], {"axis": axis}, outputs=count)
    return [emitter.emit("Squeeze", [part, emitter.ints([axis])]) for part in parts]


def einsum(emitter: Emitter, node: Node, equation: str, tensors: list[Node], **options: Any) -> Operand:
    """Only where it says in words what a transposition says in numbers."""
    before, _, after = equation.replace(" ", "").partition("->")
    if len(tensors) != 1 or len(set(before)) != len(before) or sorted(before) != sorted(after):
        raise NotCovered(f"the sum {equation}")
    return emitter.permute(emitter.env[tensors[0]], [before.index(letter) for letter in after])


def pad(
    emitter: Emitter, node: Node, x: Operand, pads: list[int], mode: str = "constant", value: Any = None
) -> Operand:
    if mode not in ("constant", "reflect") or not all(isinstance(n, int) for n in pads):
        raise NotCovered(f"padding of mode {mode}")
    rank = len(_shape(node))
    begins, ends = [0] * rank, [0] * rank
    for pair in range(len(pads) // 2):  # torch counts from the last axis
        begins[rank - 1 - pair], ends[rank - 1 - pair] = pads[2 * pair], pads[2 * pair + 1]
    filling = torch.tensor(value or 0.0, dtype=node.meta["val"].dtype)
    return emitter.emit("Pad", [x, emitter.ints([*begins, *ends]), filling], {"mode": mode})


def upsample_nearest(
    emitter: Emitter, node: Node, x: Operand, size: Any, scales: list[float] | None
) -> Operand:
    options = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    if scales is not None:
        factors = torch.tensor([1.0, 1.0, *scales], dtype=torch.float32)
        return emitter.emit("Resize", [x, None, factors], options)
    ahead = emitter.emit("Shape", [x], {"start": 0, "end": 2})
    wanted = emitter.emit("Concat", [ahead, emitter.sizes(size)], {"axis": 0})
    return emitter.emit("Resize", [x, None, None, wanted], options)


def full(emitter: Emitter, node: Node, sizes: list[Any], value: Any, **options: Any) -> Operand:
    if isinstance(value, ir.Value):  # a size
        filling = emitter.cast(value, node.meta["val"].dtype, torch.int64)
        return emitter.emit("Expand", [filling, emitter.sizes(sizes)])
    filling = torch.tensor([value], dtype=node.meta["val"].dtype)
    return emitter.emit("Expand", [filling, emitter.sizes(sizes)])


def full_like(emitter: Emitter, node: Node, x: Operand, value: Any, **options: Any) -> Operand:
    filling = torch.tensor([value], dtype=node.meta["val"].dtype)
    return emitter.emit("Expand", [filling, emitter.emit("Shape", [x])])


def arange_from(emitter: Emitter, node: Node, start: Any, end: Any, **options: Any) -> Operand:
    if start != 0:
        raise NotCovered("a range that does not begin at 0")
    return arange(emitter, node, end, **options)


def arange(emitter: Emitter, node: Node, end: Any, **options: Any) -> Operand:
    if node.meta["val"].dtype != torch.int64:
        raise NotCovered("a computed range that is not int64")
    limit = emitter.emit("Squeeze", [end])
    return emitter.emit("Range", [torch.tensor(0), limit, torch.tensor(1)])


def embedding(emitter: Emitter, node: Node, table: Operand, ids: Operand, *rest: Any) -> Operand:
    return emitter.emit("Gather", [table, ids], {"axis": 0})


def index(emitter: Emitter, node: Node, x: Operand, indices: list[Node | None]) -> Operand:
    """`x[i, j]` with vectors of the same length over the first axes."""
    if any(each is None or emitter.fake(each).dim() != 1 for each in indices):
        raise NotCovered("indexing by anything but vectors")
    fakes = [emitter.fake(each) for each in indices]
    if not all(same_shape(fakes[0].shape, fake.shape) for fake in fakes):
        raise NotCovered("indexing by vectors of different lengths")
    columns = [
        emitter.emit(
            "Unsqueeze", [emitter.cast(emitter.env[each], torch.int64, fake.dtype), emitter.ints([1])]
        )
        for each, fake in zip(indices, fakes, strict=True)
        if each is not None
    ]
    places = columns[0] if len(columns) == 1 else emitter.emit("Concat", columns, {"axis": 1})
    return emitter.emit("GatherND", [x, places])


TABLE: dict[str, Callable[..., Any]] = {
    "aten.alias.default": identity,
    "aten.clone.default": identity,
    "aten.contiguous.default": identity,
    "aten.detach.default": identity,
    "aten.detach_.default": identity,
    "aten.lift_fresh_copy.default": identity,
    "aten.dropout.default": dropout,
    "aten.view.default": view,
    "aten.reshape.default": view,
    "aten._unsafe_view.default": view,
    "aten.permute.default": permute,
    "aten.transpose.int": transpose,
    "aten.movedim.int": move,
    "aten.pixel_shuffle.default": pixel_shuffle,
    "aten.pixel_unshuffle.default": pixel_unshuffle,
    "aten.unsqueeze.default": unsqueeze,
    "aten.squeeze.dim": squeeze,
    "aten.expand.default": expand,
    "aten.slice.Tensor": slice_,
    "aten.select.int": select,
    "aten.cat.default": cat,
    "aten.concat.default": cat,
    "aten.stack.default": stack,
    "aten.split_with_sizes.default": split,
    "aten.unbind.int": unbind,
    "aten.einsum.default": einsum,
    "aten.chunk.default": chunk,
    "aten.pad.default": pad,
    "aten.upsample_nearest2d.vec": upsample_nearest,
    "aten.full.default": full,
    "aten.full_like.default": full_like,
    "aten.arange.default": arange,
    "aten.arange.start": arange_from,
    "aten.embedding.default": embedding,
    "aten.index.Tensor": index,
}
