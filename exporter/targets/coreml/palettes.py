"""Fewer bits for a weight: palettes by k-means, and integers with a scale. Knows no file format.

Both round from the checkpoint's own numbers, not from what float16 left of them, and every code is the
nearest one under the palette or scale *as it is stored*.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from exporter.errors import CheckpointError

Integer = Literal["int8", "int4"]
PALETTE_BITS = (1, 2, 4, 6, 8)
"""Of apple/ml-stable-diffusion. Core ML also takes 3 bits, from iOS 18 on."""
INTEGER_BITS: dict[Integer, int] = {"int8": 8, "int4": 4}
BLOCKS = (32, 16, 8)
"""Neighbours along the input channels that share a scale in int4: coremltools' default, or what fits."""
ROUNDS = 300
MOVES = 4
"""Of each centre, at most, past others."""


@dataclass(frozen=True)
class Palette:
    """A weight as places in a table.

    Attributes:
        codes: uint8, in the weight's shape.
        table: (2**bits,), ascending, in the dtype it is stored in.
    """

    codes: np.ndarray
    table: np.ndarray
    bits: int

    def values(self) -> np.ndarray:
        """What the codes stand for, float32."""
        return self.table.astype(np.float32)[self.codes]


@dataclass(frozen=True)
class Integers:
    """A weight as symmetric integers times a scale.

    Attributes:
        codes: int8, in the weight's shape, within ±(2**(bits - 1) - 1).
        scales: (rows, blocks, 1, …) in the dtype they are stored in; one block is a whole row.
    """

    codes: np.ndarray
    scales: np.ndarray
    bits: int

    def values(self) -> np.ndarray:
        """What the codes stand for, float32."""
        rows, blocks = self.scales.shape[:2]
        grouped = self.codes.reshape(rows, blocks, -1).astype(np.float32)
        scaled = grouped * self.scales.reshape(rows, blocks, 1).astype(np.float32)
        return scaled.reshape(self.codes.shape)


def palettise(values: np.ndarray, bits: int, dtype: str = "float16") -> Palette:
    """The 2**bits numbers that stand for a weight with the least squared error, nearly.

    Lloyd's iteration over the sorted numbers, begun where the third root of their density says (Panter and
    Dite, 1951: the best places for many levels). In one dimension a round costs what the palette has entries,
    whatever the weight's size.

    Args:
        values: float32, any shape.
        dtype: Of the table: `float16` or `float32`.

    Raises:
        CheckpointError: NaN or infinity, or numbers that the dtype does not hold.
    """
    _check_finite(values, dtype)
    # On float16's grid a weight of any size has at most 65536 different numbers.
    patterns = np.bincount(values.astype(np.float16).view(np.uint16).reshape(-1), minlength=1 << 16)
    found = np.flatnonzero(patterns)
    numbers = found.astype(np.uint16).view(np.float16).astype(np.float64)
    order = np.argsort(numbers, kind="stable")
    numbers, counts = numbers[order], patterns[found][order].astype(np.float64)
    table = np.sort(_centres(numbers, counts, 1 << bits).astype(dtype))
    middles = (table[1:].astype(np.float64) + table[:-1].astype(np.float64)) / 2
    codes = np.searchsorted(middles, values.reshape(-1)).astype(np.uint8)
    return Palette(codes.reshape(values.shape), table, bits)


class _Clusters:
    """Ascending numbers with counts, cut into cells by centres; sums over a cell cost two look-ups."""

    def __init__(self, numbers: np.ndarray, counts: np.ndarray) -> None:
        self.numbers = numbers
        self.mass = np.concatenate([[0.0], np.cumsum(counts)])
        self.sums = np.concatenate([[0.0], np.cumsum(numbers * counts)])

    def settle(self, centres: np.ndarray, rounds: int) -> np.ndarray:
        """Lloyd's iteration: every centre to the mean of what is nearest to it."""
        before = None
        for _ in range(rounds):
            edges = self.edges(centres)
            if before is not None and np.array_equal(edges, before):
                break
            before = edges
            mass, total = self.within(edges[:-1], edges[1:])
            centres = np.sort(np.where(mass > 0, total / np.where(mass > 0, mass, 1), centres))
        return centres

    def edges(self, centres: np.ndarray) -> np.ndarray:
        inner = np.searchsorted(self.numbers, (centres[1:] + centres[:-1]) / 2)
        return np.concatenate([[0], inner, [len(self.numbers)]])

    def within(self, first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Counts and sums of the numbers from `first` up to `last`."""
        return self.mass[last] - self.mass[first], self.sums[last] - self.sums[first]

    def move(self, centres: np.ndarray) -> np.ndarray | None:
        """Join the two neighbours that cost least and cut the cell that gains most; None where that would not
        pay. Lloyd's iteration alone never carries a centre past others."""
        edges = self.edges(centres)
        mass, total = self.within(edges[:-1], edges[1:])
        middle = np.clip(np.searchsorted(self.numbers, centres), edges[:-1], edges[1:])
        left_mass, left = self.within(edges[:-1], middle)
        gains, low, high = _apart(left_mass, left, mass - left_mass, total - left)
        costs, _, _ = _apart(mass[:-1], total[:-1], mass[1:], total[1:])
        joined = int(costs.argmin())
        gains[joined : joined + 2] = -1
        cut = int(gains.argmax())
        if not (gains[cut] > costs[joined] * (1 + 1e-9)):
            return None
        both = mass[joined] + mass[joined + 1]
        mean = (total[joined] + total[joined + 1]) / both if both > 0 else centres[joined]
        kept = np.delete(centres, [joined, joined + 1, cut])
        return np.sort(np.concatenate([kept, [mean, low[cut], high[cut]]]))


def _apart(
    mass: np.ndarray, total: np.ndarray, other_mass: np.ndarray, other: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How much less two groups cost with a centre each than with one, and these centres."""
    both = mass + other_mass
    one = np.where(mass > 0, total / np.where(mass > 0, mass, 1), 0)
    two = np.where(other_mass > 0, other / np.where(other_mass > 0, other_mass, 1), 0)
    return mass * other_mass / np.where(both > 0, both, 1) * np.square(one - two), one, two


def _centres(numbers: np.ndarray, counts: np.ndarray, size: int) -> np.ndarray:
    """Centres of `size` clusters of ascending numbers, float64."""
    if len(numbers) <= size:
        return np.concatenate([numbers, np.full(size - len(numbers), numbers[-1])])
    clusters = _Clusters(numbers, counts)
    centres = clusters.settle(_first_guess(numbers, counts, size), ROUNDS)
    for _ in range(MOVES * size):
        moved = clusters.move(centres) if size > 2 else None
        if moved is None:
            break
        centres = clusters.settle(moved, 3)
    return clusters.settle(centres, ROUNDS)


def _first_guess(numbers: np.ndarray, counts: np.ndarray, size: int) -> np.ndarray:
    """Evenly along the integral of the third root of the density, which is its count over its width."""
    gaps = np.diff(numbers)
    widths = (np.append(gaps, gaps[-1]) + np.insert(gaps, 0, gaps[0])) / 2
    share = np.cumsum(np.cbrt(counts) * np.cbrt(widths) ** 2)
    return np.interp((np.arange(size) + 0.5) / size * share[-1], share, numbers)


def to_integers(values: np.ndarray, kind: Integer, dtype: str = "float16") -> Integers:
    """Symmetric integers: int8 with a scale for each output channel, int4 for each block of a row.

    Args:
        values: float32 (output channels, input channels, …).
        dtype: Of the scales.

    Raises:
        CheckpointError: NaN or infinity, or numbers that the dtype does not hold.
    """
    _check_finite(values, dtype)
    bits, (rows, columns) = INTEGER_BITS[kind], values.shape[:2]
    size = block_of(columns) if kind == "int4" else columns
    grouped = values.reshape(rows, columns // size, -1)
    top = 2 ** (bits - 1) - 1
    scales = (np.abs(grouped).max(axis=2) / np.float32(top)).astype(dtype)
    least = np.finfo(dtype).smallest_subnormal
    scales = np.where(scales == 0, least, scales).astype(dtype)  # a row of zeros, or one too small to scale
    codes = np.clip(np.rint(grouped / scales[..., None].astype(np.float32)), -top, top).astype(np.int8)
    shape = (rows, columns // size, *(1,) * (values.ndim - 2))
    return Integers(codes.reshape(values.shape), scales.reshape(shape), bits)


def block_of(columns: int) -> int:
    """Input channels that share a scale in int4."""
    return next((size for size in BLOCKS if columns % size == 0), columns)


def _check_finite(values: np.ndarray, dtype: str) -> None:
    if not (float(np.abs(values).max(initial=0)) <= float(np.finfo(dtype).max)):
        raise CheckpointError(
            f"A weight holds NaN, infinity, or a number that {dtype} cannot hold; it cannot be compressed."
        )


def noise_ratio(values: np.ndarray, restored: np.ndarray) -> float:
    """Energy of the rounding over that of the weight."""
    noise = float(np.square(restored - values, dtype=np.float64).sum())
    signal = float(np.square(values, dtype=np.float64).sum())
    return noise / signal if signal > 0 else 0.0


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of `bits` bits side by side, the lowest bits first, as Core ML stores them.

    Args:
        codes: uint8, or int8 (its lowest bits are taken).

    Returns:
        uint8 of ⌈count × bits ÷ 8⌉ bytes.
    """
    flat = codes.reshape(-1).view(np.uint8)
    if bits == 8:
        return flat
    parts = []
    step = 1 << 20  # a multiple of eight numbers fills whole bytes
    for first in range(0, flat.size, step):
        some = flat[first : first + step, None] >> np.arange(bits, dtype=np.uint8) & 1
        parts.append(np.packbits(some.reshape(-1), bitorder="little"))
    return np.concatenate(parts) if parts else np.zeros(0, np.uint8)
