"""Weights in the data file of an artifact.

A weight is found by its values, not by its name: formats rename and transpose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tests.mutation.blob import Blob

Change = Callable[[np.ndarray], np.ndarray]


def find(blobs: Sequence[Blob], weight: np.ndarray) -> tuple[Blob, bool]:
    """Where a weight of the checkpoint lies, and whether transposed.

    Raises:
        LookupError: Its values are in no blob.
    """
    for blob in blobs:
        if int(np.prod(blob.shape, dtype=np.int64)) != weight.size:
            continue
        stored = blob.read().reshape(-1)
        if np.array_equal(stored, weight.reshape(-1).astype(blob.dtype)):
            return blob, False
        if weight.ndim == 2 and np.array_equal(stored, weight.T.reshape(-1).astype(blob.dtype)):
            return blob, True
    raise LookupError(f"no stored tensor holds the weight of shape {weight.shape}")


def change_weight(blobs: Sequence[Blob], weight: np.ndarray, change: Change) -> None:
    """Overwrite one weight by `change(weight)`, in the layout and dtype in which it is stored."""
    blob, transposed = find(blobs, weight)
    changed = change(weight.copy())
    if changed.shape != weight.shape:
        raise ValueError("a changed weight keeps its shape")
    laid = (changed.T if transposed else changed).reshape(blob.shape)
    with np.errstate(over="ignore"):
        blob.write(np.ascontiguousarray(laid).astype(blob.dtype))


def change_all(blobs: Sequence[Blob], change: Change) -> None:
    """Overwrite every stored matrix and kernel."""
    for blob in blobs:
        if sum(size > 1 for size in blob.shape) > 1:
            blob.write(change(blob.read()).astype(blob.dtype))
