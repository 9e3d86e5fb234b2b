"""How large a result will be, before it is made.

A few bytes of a hostile package can ask for any amount of memory (`tile` a million times). Every value's
shape is declared, so what disagrees with its declaration can be refused before it is computed, and a
declaration that no machine can meet when the program is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from exporter.errors import ArtifactError
from exporter.targets.coreml.interpreter.elementwise import BINARY
from exporter.targets.coreml.interpreter.registry import flag, number, numbers

Shape = tuple[int | None, ...]
Given = Mapping[str, Any]


def fits(shape: Sequence[int], declared: Shape) -> bool:
    """Whether a shape is the declared one; None stands for any size."""
    return len(shape) == len(declared) and all(
        d is None or d == s for d, s in zip(declared, shape, strict=True)
    )


def check_sizes(outputs: Sequence[tuple[str, str, Shape]], place: str) -> None:
    """
    Raises:
        ArtifactError: A declared value is larger than this machine's memory.
    """
    for name, _, shape in outputs:
        count = math.prod(size for size in shape if size is not None)
        if count * 4 > MEMORY:
            raise ArtifactError(
                f"{place}: {name!r} is declared {list(shape)}, {count * 4 / 1e9:.0f} GB in float32; this "
                f"machine has {MEMORY / 1e9:.0f} GB."
            )


def _memory() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


MEMORY = _memory()


def foreseen(kind: str, given: Given) -> Sequence[int] | None:
    """The shape that an operation will give, for those that can make much out of little; else None.

    Raises:
        Exception: Whatever torch says of operands that do not go together.
    """
    rule = RULES.get(kind)
    return rule(given) if rule is not None else None


def _broadcast(given: Given) -> Sequence[int] | None:
    shapes = [value.shape for value in given.values() if isinstance(value, torch.Tensor)]
    if len(shapes) < 2 or all(shape == shapes[0] for shape in shapes):
        return None
    return torch.broadcast_shapes(*shapes)


def _matmul(given: Given) -> Sequence[int] | None:
    x, y = given["x"], given["y"]
    if min(x.dim(), y.dim()) < 2:
        return None
    rows = x.shape[-1] if flag(given.get("transpose_x", False)) else x.shape[-2]
    columns = y.shape[-2] if flag(given.get("transpose_y", False)) else y.shape[-1]
    return (*torch.broadcast_shapes(x.shape[:-2], y.shape[:-2]), rows, columns)


def _einsum(given: Given) -> Sequence[int] | None:
    operands, arrow, result = str(given["equation"]).replace(" ", "").partition("->")
    letters = operands.split(",")
    if not arrow or "." in operands or [len(w) for w in letters] != [v.dim() for v in given["values"]]:
        return None
    sizes: dict[str, int] = {}
    for word, value in zip(letters, given["values"], strict=True):
        for letter, size in zip(word, value.shape, strict=True):
            sizes[letter] = max(sizes.get(letter, 1), size)
    return [sizes[letter] for letter in result]


def _tile(given: Given) -> Sequence[int]:
    return [size * times for size, times in zip(given["x"].shape, numbers(given["reps"]), strict=True)]


def _pad(given: Given) -> Sequence[int]:
    sizes, shape = numbers(given["pad"]), list(given["x"].shape)
    first = len(shape) - len(sizes) // 2
    return [
        size + (sum(sizes[2 * (axis - first) : 2 * (axis - first) + 2]) if axis >= first else 0)
        for axis, size in enumerate(shape)
    ]


def _upsample(given: Given) -> Sequence[int]:
    *lead, high, wide = given["x"].shape
    by_height, by_width = (
        number(given.get("scale_factor_height", 1)),
        number(given.get("scale_factor_width", 1)),
    )
    return [*lead, int(high * by_height), int(wide * by_width)]


def _gather(given: Given) -> Sequence[int] | None:
    x, indices = given["x"], given["indices"]
    axis, batch = int(number(given.get("axis", 0))) % x.dim(), int(number(given.get("batch_dims", 0)))
    return [*x.shape[:axis], *indices.shape[batch:], *x.shape[axis + 1 :]]


def _conv(given: Given) -> Sequence[int] | None:
    """Only how much is padded: more than the picture itself is refused by its declaration."""
    pads = given.get("pad")
    if pads is None or given.get("pad_type") != "custom":
        return None
    x, weight = given["x"], given["weight"]
    sizes, spatial = numbers(pads), x.dim() - 2
    steps = numbers(given["strides"]) if given.get("strides") is not None else [1] * spatial
    spread = numbers(given["dilations"]) if given.get("dilations") is not None else [1] * spatial
    return [
        x.shape[0],
        weight.shape[0],
        *(
            (x.shape[2 + i] + sizes[2 * i] + sizes[2 * i + 1] - (weight.shape[2 + i] - 1) * spread[i] - 1)
            // steps[i]
            + 1
            for i in range(spatial)
        ),
    ]


RULES: dict[str, Callable[[Given], Sequence[int] | None]] = {
    **dict.fromkeys([*BINARY, "real_div", "floor_div", "select"], _broadcast),
    "conv": _conv,
    "einsum": _einsum,
    "fill": lambda given: numbers(given["shape"]),
    "gather": _gather,
    "matmul": _matmul,
    "pad": _pad,
    "tile": _tile,
    "upsample_nearest_neighbor": _upsample,
}
