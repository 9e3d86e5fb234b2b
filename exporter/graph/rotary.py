"""Rotary positions without double precision in the graph.

FLUX computes the angles of its positions in float64 and rounds their cosines to float32. Few runtimes have
float64, and in float32 an angle of 100 is off by up to 4e-6. Positions are small whole numbers: cosines and
sines are looked up instead: computed in float64 now and rounded once, they are the library's own numbers, and
no runtime computes them again. The library's function is replaced only while a graph is captured; the
reference that parity runs is never patched.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

POSITIONS = 2048
"""Rows of the tables: patches of 16 pixels, so pictures of 32768 pixels a side."""
FUNCTION = "get_1d_rotary_pos_embed"


@contextmanager
def rotary_by_table() -> Iterator[None]:
    """Inside, rotary positions that the library computes in float64 are captured as a look-up."""
    modules = [m for name, m in list(sys.modules.items()) if name.startswith("diffusers.models.")]
    originals = [(m, vars(m)[FUNCTION]) for m in modules if FUNCTION in vars(m)]
    try:
        for module, original in originals:
            setattr(module, FUNCTION, _looked_up(original))
        yield
    finally:
        for module, original in originals:
            setattr(module, FUNCTION, original)


def _looked_up(original: Any) -> Any:
    @functools.wraps(original)
    def rotary(dim: int, pos: Any, *args: Any, **options: Any) -> Any:
        import torch

        if options.get("freqs_dtype") != torch.float64 or not options.get("use_real") or args:
            return original(dim, pos, *args, **options)
        cosines, sines = _tables(original, dim, tuple(sorted(options.items(), key=lambda item: item[0])))
        rows = pos.to(torch.int64)
        return torch.nn.functional.embedding(rows, cosines), torch.nn.functional.embedding(rows, sines)

    return rotary


@functools.lru_cache(maxsize=16)
def _tables(
    original: Any, dim: int, options: tuple[tuple[str, Any], ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the library gives for positions 0, 1, 2 …: cosines and sines, float32 `[POSITIONS, dim]`."""
    import torch
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes():
        cosines, sines = original(dim, torch.arange(POSITIONS, dtype=torch.float32), **dict(options))
        return cosines, sines
