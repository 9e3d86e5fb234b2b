"""Operators that came with video models: repeats, joining and splitting of unknown axes.

Each function takes the emitter, the traced node, and the node's arguments with tensors replaced by what
they became. Semantics are those of torch's `aten` operators of that name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from exporter.graph.direct.emitter import Emitter, NotCovered, Operand
from exporter.graph.direct.layout import cat, view


def _rank(emitter: Emitter, node: Node) -> int:
    return emitter.fake(node.args[0]).dim()


def _around(emitter: Emitter, x: Operand, first: int, last: int, inside: list[Any], rank: int) -> Operand:
    """`x` with its axes `first` to `last` replaced by `inside`, the others as they are at run time."""
    parts = [emitter.sizes(inside)]
    if first > 0:
        parts.insert(0, emitter.emit("Shape", [x], {"start": 0, "end": first}))
    if last + 1 < rank:
        parts.append(emitter.emit("Shape", [x], {"start": last + 1, "end": rank}))
    shape = parts[0] if len(parts) == 1 else emitter.emit("Concat", parts, {"axis": 0})
    return emitter.emit("Reshape", [x, shape])


def flatten(emitter: Emitter, node: Node, x: Operand, first: int = 0, last: int = -1) -> Operand:
    """Where symbols leave more than one size open, sizes around the joined axes are read at run time."""
    try:
        return view(emitter, node, x)
    except NotCovered:
        rank = _rank(emitter, node)
        return _around(emitter, x, first % rank, last % rank, [-1], rank)


def unflatten(emitter: Emitter, node: Node, x: Operand, axis: int, sizes: list[Any]) -> Operand:
    try:
        return view(emitter, node, x)
    except NotCovered:
        rank = _rank(emitter, node)
        return _around(emitter, x, axis % rank, axis % rank, list(sizes), rank)


def repeat(emitter: Emitter, node: Node, x: Operand, repeats: list[Any]) -> Operand:
    rank = _rank(emitter, node)
    ahead = len(repeats) - rank
    if ahead:
        x = emitter.emit("Unsqueeze", [x, emitter.ints(range(ahead))])
    return emitter.emit("Tile", [x, emitter.sizes(repeats)])


def repeat_interleave(
    emitter: Emitter, node: Node, x: Operand, repeats: Any, axis: int | None = None, **options: Any
) -> Operand:
    """Each element of an axis several times in a row."""
    rank = _rank(emitter, node)
    if axis is None or not isinstance(repeats, int):
        raise NotCovered("repeats of no one axis, or as many as is computed")
    axis %= rank
    wide = emitter.emit("Unsqueeze", [x, emitter.ints([axis + 1])])
    tiles = [1] * (rank + 1)
    tiles[axis + 1] = repeats
    tiled = emitter.emit("Tile", [wide, emitter.ints(tiles)])
    return _around(emitter, tiled, axis, axis + 1, [-1], rank + 1)


def whole_quotient(
    emitter: Emitter, node: Node, x: Operand, y: Operand, rounding_mode: str | None = None
) -> Operand:
    """Of integers, towards zero, as ONNX divides them."""
    sides = [each for each in node.args[:2] if isinstance(each, Node)]
    whole = all(emitter.fake(each).dtype == torch.int64 for each in sides)
    if rounding_mode != "trunc" or not whole or len(sides) != 2:
        raise NotCovered(f"a division that rounds by {rounding_mode}")
    return emitter.emit("Div", [x, y])


TABLE: dict[str, Callable[..., Any]] = {
    "aten.flatten.using_ints": flatten,
    "aten.unflatten.int": unflatten,
    "aten.repeat.default": repeat,
    "aten.repeat_interleave.self_int": repeat_interleave,
    "aten.concatenate.default": cat,
    "aten.div.Tensor_mode": whole_quotient,
}
