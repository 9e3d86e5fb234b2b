"""What happens to the numbers of a weight: array in, array of the same shape and dtype out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Change = Callable[[np.ndarray], np.ndarray]
TensorChange = Callable[[str, np.ndarray], np.ndarray]
"""(name, tensor) → tensor, for every weight of a checkpoint's component."""


def scaled(factor: float) -> Change:
    return lambda weight: (weight * np.float32(factor)).astype(weight.dtype)


def one_element(*, factor: float = 1.0, value: float | None = None) -> Change:
    """The element of largest magnitude, and only that one, times `factor` or set to `value`."""

    def change(weight: np.ndarray) -> np.ndarray:
        place = np.unravel_index(int(np.argmax(np.abs(weight))), weight.shape)
        weight[place] = weight[place] * np.float32(factor) if value is None else value
        return weight

    return change


def swapped(axis: int) -> Change:
    """The first two slices along an axis exchanged."""

    def change(weight: np.ndarray) -> np.ndarray:
        order = list(range(weight.shape[axis]))
        order[0], order[1] = 1, 0
        return np.take(weight, order, axis)

    return change


def transposed(weight: np.ndarray) -> np.ndarray:
    return weight.T


def shifted(weight: np.ndarray) -> np.ndarray:
    """Every row one place further."""
    return np.roll(weight, 1, axis=0)


def first_row_zeroed(weight: np.ndarray) -> np.ndarray:
    weight[0] = 0
    return weight


def through_bfloat16(weight: np.ndarray) -> np.ndarray:
    """bfloat16 by cutting the mantissa off."""
    bits = np.ascontiguousarray(weight, dtype=np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


def through_float16(weight: np.ndarray) -> np.ndarray:
    return weight.astype(np.float16).astype(np.float32)


def through_int8(weight: np.ndarray) -> np.ndarray:
    """Symmetric, one scale for the whole tensor."""
    scale = float(np.abs(weight).max()) / 127 or 1.0
    return (np.round(weight / scale) * scale).astype(np.float32)


def perturbed(size: float) -> TensorChange:
    """Another fine-tune: every matrix and kernel moved by relative noise."""

    def change(name: str, weight: np.ndarray) -> np.ndarray:
        if weight.ndim < 2:
            return weight
        noise = np.random.default_rng(weight.size + len(name)).standard_normal(weight.shape)
        return (weight * (1 + size * noise)).astype(weight.dtype)

    return change


def reseeded(name: str, weight: np.ndarray) -> np.ndarray:
    """Values of the same spread in another order, as another seed would give."""
    if weight.ndim < 2:
        return weight
    return np.random.default_rng(weight.size).permutation(weight.reshape(-1)).reshape(weight.shape)
