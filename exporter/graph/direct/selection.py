"""Operators that choose among elements: sort them, take them by number, and put them back.

Each function takes the emitter, the traced node, and the node's arguments with tensors replaced by what
they became. Semantics are those of torch's `aten` operators of that name. Numbers of elements are never
negative here, which is where ONNX counts otherwise than torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from exporter.graph.direct.emitter import Emitter, NotCovered, Operand
from exporter.graph.direct.layout import full_like


def index_select(emitter: Emitter, node: Node, x: Operand, axis: int, index: Operand) -> Operand:
    return emitter.emit("Gather", [x, index], {"axis": _axis(emitter, node, axis)})


def gather(emitter: Emitter, node: Node, x: Operand, axis: int, index: Operand, **options: Any) -> Operand:
    return emitter.emit("GatherElements", [x, index], {"axis": _axis(emitter, node, axis)})


def scatter(emitter: Emitter, node: Node, x: Operand, axis: int, index: Operand, source: Any) -> Operand:
    return emitter.emit("ScatterElements", [x, index, source], {"axis": _axis(emitter, node, axis)})


def scatter_add(emitter: Emitter, node: Node, x: Operand, axis: int, index: Operand, source: Any) -> Operand:
    options = {"axis": _axis(emitter, node, axis), "reduction": "add"}
    return emitter.emit("ScatterElements", [x, index, source], options)


def largest(emitter: Emitter, node: Node, x: Operand, axis: int, keep: bool = False) -> list[Operand]:
    """The largest along an axis, and where it is."""
    place = _axis(emitter, node, axis)
    value = emitter.emit("ReduceMax", [x, emitter.ints([place])], {"keepdims": int(keep)})
    return [value, emitter.emit("ArgMax", [x], {"axis": place, "keepdims": int(keep)})]


def argsort(emitter: Emitter, node: Node, x: Operand, axis: int = -1, descending: bool = False) -> Operand:
    place = _axis(emitter, node, axis)
    count = emitter.emit("Shape", [x], {"start": place, "end": place + 1})
    options = {"axis": place, "largest": int(descending), "sorted": 1}
    return emitter.emit("TopK", [x, count], options, outputs=2)[1]  # type: ignore[no-any-return]


def norm(
    emitter: Emitter, node: Node, x: Operand, order: float = 2, axes: Any = None, keep: bool = False, **o: Any
) -> Operand:
    if order != 2 or axes is None or o:
        raise NotCovered("a norm that is not the Euclidean one along axes")
    return emitter.emit("ReduceL2", [x, emitter.ints(axes)], {"keepdims": int(keep)})


def expand_as(emitter: Emitter, node: Node, x: Operand, like: Operand) -> Operand:
    return emitter.emit("Expand", [x, emitter.emit("Shape", [like])])


def like(value: int) -> Callable[..., Operand]:
    def translate(emitter: Emitter, node: Node, x: Operand, **options: Any) -> Operand:
        return full_like(emitter, node, x, value)

    return translate


def remainder(emitter: Emitter, node: Node, x: Operand, y: Any) -> Operand:
    """Of int64, with the sign of the divisor, by a number or a size."""
    if node.meta["val"].dtype != torch.int64:
        raise NotCovered(f"{node.target} of anything but int64")
    number = node.args[1]
    tensor = isinstance(number, Node) and isinstance(number.meta["val"], torch.Tensor)
    return emitter.emit("Mod", [x, y if tensor else emitter.size(number)])


def split(emitter: Emitter, node: Node, x: Operand, size: Any, axis: int = 0) -> list[Operand]:
    """Equal parts of a known size; the last may be smaller."""
    lengths = [each.shape[axis] for each in node.meta["val"]]
    if not all(isinstance(length, int) for length in lengths):
        raise NotCovered("parts of unknown length")
    if len(lengths) == 1:
        return [x]
    options = {"axis": _axis(emitter, node, axis)}
    return list(emitter.emit("Split", [x, emitter.ints(lengths)], options, outputs=len(lengths)))


def _axis(emitter: Emitter, node: Node, axis: int) -> int:
    return axis % emitter.fake(node.args[0]).dim()


TABLE: dict[str, Callable[..., Any]] = {
    "aten.index_select.default": index_select,
    "aten.gather.default": gather,
    "aten.scatter.src": scatter,
    "aten.scatter_add.default": scatter_add,
    "aten.max.dim": largest,
    "aten.argsort.default": argsort,
    "aten.linalg_vector_norm.default": norm,
    "aten.expand_as.default": expand_as,
    "aten.ones_like.default": like(1),
    "aten.zeros_like.default": like(0),
    "aten.remainder.Scalar": remainder,
    "aten.remainder.Tensor": remainder,
    "aten.split.Tensor": split,
}
