"""Decoding and encoding large pictures tile by tile: memory grows with the tile, not with the picture.

Tiles overlap and are blended: each is weighted by how far inside it a cell lies, and the weights at a cell
are made to sum to one. A network that looks at its whole input (group norm, attention) sees a tile only, so
the result is close to the undivided one and not equal to it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch

OVERLAP = 0.25
"""Part of a tile that it shares with the next one, at least; diffusers' own tiling shares as much."""


def starts(length: int, tile: int, overlap: float = OVERLAP) -> list[int]:
    """Where tiles begin: as few as cover `length` with that overlap, evenly spread, the last ending with it.

    Raises:
        ValueError: The tile is empty, or the overlap leaves no step.
    """
    if tile < 1 or not 0 <= overlap < 1:
        raise ValueError(f"no tiles of {tile} with an overlap of {overlap}")
    if tile >= length:
        return [0]
    step = max(1, math.floor(tile * (1 - overlap)))
    count = 1 + math.ceil((length - tile) / step)
    return [round(number * (length - tile) / (count - 1)) for number in range(count)]


def ramp(length: int, before: int, after: int) -> torch.Tensor:
    """Weights along one side of a tile, float32: rising over the cells shared with the tile before, falling
    over those shared with the next, one between."""
    place = torch.arange(length, dtype=torch.float32) + 0.5
    rising = place / before if before else torch.ones(length)
    falling = (length - place) / after if after else torch.ones(length)
    return torch.minimum(rising, falling).clamp(max=1.0)


def in_tiles(
    function: Callable[[torch.Tensor], torch.Tensor],
    value: torch.Tensor,
    tile: tuple[int, int],
    unit: int = 1,
) -> torch.Tensor:
    """Apply a function that keeps the picture's proportions to overlapping tiles, and blend what it gives.

    Args:
        function: (batch, channels, height, width) → (batch, others, height · a, width · a) or (… / a);
            `a` is the same on both sides.
        value: What to divide; a side shorter than the tile is not divided.
        tile: Height and width of a tile, in cells of `value`. Smaller tiles are never asked for unless
            `value` itself is smaller.
        unit: Cells of `value` that become one; tiles begin and end between two of them.

    Returns:
        float32, of the size that `function` would have given for all of `value`.

    Raises:
        ValueError: The function does not keep proportions, or a side is no multiple of `unit`.
    """
    if any(side % unit for side in (*value.shape[-2:], *tile)):
        raise ValueError(f"{tuple(value.shape[-2:])} in tiles of {tile} are no multiples of {unit}")
    height, width = value.shape[-2:]
    tall, wide = min(tile[0], height), min(tile[1], width)
    rows, columns = (
        [unit * start for start in starts(length // unit, side // unit)]
        for length, side in ((height, tall), (width, wide))
    )
    if len(rows) == len(columns) == 1:
        return function(value).float()
    total = weight = torch.empty(0)
    for top, (above, below) in zip(rows, shared(rows, tall), strict=True):
        for left, (before, after) in zip(columns, shared(columns, wide), strict=True):
            part = function(value[..., top : top + tall, left : left + wide]).float()
            up, down = proportion(part.shape[-2], tall)
            if part.shape[-1] * down != wide * up:
                raise ValueError(f"a tile of {tall}×{wide} became {part.shape[-2]}×{part.shape[-1]}")
            if not total.numel():
                shape = (*part.shape[:-2], scaled(height, up, down), scaled(width, up, down))
                total, weight = torch.zeros(shape), torch.zeros(shape[-2:])
            weights = torch.outer(
                ramp(part.shape[-2], scaled(above, up, down), scaled(below, up, down)),
                ramp(part.shape[-1], scaled(before, up, down), scaled(after, up, down)),
            )
            y, x = scaled(top, up, down), scaled(left, up, down)
            end, right = y + part.shape[-2], x + part.shape[-1]
            total[..., y:end, x:right] += part * weights
            weight[y:end, x:right] += weights
    return total / weight


def shared(begin: list[int], tile: int) -> list[tuple[int, int]]:
    """Cells that each tile shares with the one before and with the next."""
    both = [first + tile - second for first, second in itertools.pairwise(begin)]
    return list(zip([0, *both], [*both, 0], strict=True))


def proportion(after: int, before: int) -> tuple[int, int]:
    """How much larger, as a fraction in lowest terms."""
    common = math.gcd(after, before)
    return after // common, before // common


def scaled(length: int, up: int, down: int) -> int:
    if length * up % down:
        raise ValueError(f"{length} cells do not become a whole number of cells at {up}:{down}")
    return length * up // down
