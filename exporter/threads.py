"""How many threads PyTorch computes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from exporter.errors import UsageError


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """PyTorch on `count` threads inside; None changes nothing.

    Raises:
        UsageError: Fewer than one.
    """
    import torch

    if count is not None and count < 1:
        raise UsageError(f"A model cannot run on {count} threads.")
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
