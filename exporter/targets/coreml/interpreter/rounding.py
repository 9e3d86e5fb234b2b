"""Rounding to a shorter dtype and back, without a copy where the result is nobody else's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

PIECE = 1 << 17
"""Numbers rounded at a time: what is read is still in the processor's cache when it is written back."""


def round_to(result: torch.Tensor, dtype: torch.dtype, operands: Iterable[Any]) -> torch.Tensor:
    """float32 numbers rounded to `dtype`, as float32.

    Args:
        result: Overwritten, unless it shares its memory with an operand.
        operands: Of the operation that made it: tensors, and tuples of them.
    """
    if shares_memory(result, operands):
        return result.to(dtype).float()
    if not result.is_contiguous() or result.numel() <= PIECE:
        return result.copy_(result.to(dtype))
    flat = result.view(-1)
    short = torch.empty(PIECE, dtype=dtype)
    for first in range(0, flat.numel(), PIECE):
        piece = flat[first : first + PIECE]
        piece.copy_(short[: piece.numel()].copy_(piece))
    return result


def shares_memory(result: torch.Tensor, operands: Iterable[Any]) -> bool:
    """Whether any operand lies in the same memory."""
    place = result.untyped_storage().data_ptr()
    for operand in operands:
        for item in operand if isinstance(operand, tuple) else (operand,):
            if isinstance(item, torch.Tensor) and item.untyped_storage().data_ptr() == place:
                return True
    return False
