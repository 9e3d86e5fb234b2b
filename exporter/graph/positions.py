"""Positions of patches at any size, captured as one formula, and without double precision in the graph.

diffusers' `PatchEmbed` keeps the sinusoids of the trained size and computes others anew, in float64. A graph
for every size cannot branch on it, few runtimes have float64, and in bfloat16 a runtime would round a
position of 31 to a quarter before its sine is taken. So whole numbers say between which two places of a
finer grid a patch lies, a table made now has their sinusoids, and the theorem of addition does the small
rest. At the trained size there is no rest: those are the library's own numbers. The library is replaced only
while a graph is captured; the reference that parity runs is never patched.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MODULE = "diffusers.models.embeddings"
CLASS = "PatchEmbed"
STEPS = 16
"""Positions in the table for each patch of the trained size."""


@contextmanager
def positions_at_any_size(*, table: bool = True) -> Iterator[None]:
    """Inside, `PatchEmbed` computes its positions for whatever size it gets.

    Args:
        table: By looking them up; else by the library's own formula, in float64.
    """
    cls = getattr(sys.modules.get(MODULE), CLASS, None)
    if cls is None:
        yield
        return
    original = cls.forward
    cls.forward = _forward(original, _looked_up if table else _computed)
    try:
        yield
    finally:
        cls.forward = original


def _forward(original: Any, positions: Callable[..., torch.Tensor]) -> Any:
    @functools.wraps(original)
    def forward(self: Any, latent: torch.Tensor) -> torch.Tensor:
        if self.pos_embed is None or self.pos_embed_max_size is not None or not self.flatten:
            return original(self, latent)  # type: ignore[no-any-return]
        patches = self.proj(latent)
        height, width = patches.shape[-2:]
        patches = patches.flatten(2).transpose(1, 2)
        if self.layer_norm:
            patches = self.norm(patches)
        return (patches + positions(self, height, width, patches.device)).to(patches.dtype)

    return forward


def _computed(module: Any, height: Any, width: Any, device: torch.device) -> torch.Tensor:
    """`[1, height * width, channels]` float32: columns in the first half of the channels, rows in the second.

    The library's formula for one side, without the reshape of its formula for two: that would make a program
    ask whether height and width are the same.
    """
    import torch

    formula = sys.modules[MODULE].get_1d_sincos_pos_embed_from_grid
    channels = int(module.pos_embed.shape[-1]) // 2

    def line(count: Any) -> torch.Tensor:
        places = torch.arange(count, device=device, dtype=torch.float32)
        places = places / (count / module.base_size) / module.interpolation_scale
        made: torch.Tensor = formula(channels, places, output_type="pt")
        return made

    return _crossed(line(height), line(width), height, width).float()


def _looked_up(module: Any, height: Any, width: Any, device: torch.device) -> torch.Tensor:
    """The same from a table."""
    base, scale = int(module.base_size), float(module.interpolation_scale)
    channels = int(module.pos_embed.shape[-1]) // 2
    rows, columns = (_line(count, channels, base, scale) for count in (height, width))
    return _crossed(rows, columns, height, width)


def _crossed(rows: torch.Tensor, columns: torch.Tensor, height: Any, width: Any) -> torch.Tensor:
    import torch

    across = columns.unsqueeze(0).expand(height, -1, -1)
    down = rows.unsqueeze(1).expand(-1, width, -1)
    return torch.cat([across, down], dim=-1).flatten(0, 1).unsqueeze(0)


def _line(count: Any, channels: int, base: int, scale: float) -> torch.Tensor:
    """Sines, then cosines of `count` places that are spread evenly over the trained size.

    Place `i` is at `i * base / count / scale`. Its whole number of `1 / STEPS / scale` is looked up; what is
    left over is an angle below `1 / STEPS / scale`.

    Returns:
        `[count, channels]` float32.
    """
    import torch
    from torch.nn.functional import embedding

    sines, cosines, frequencies = _tables(channels, base, scale)
    index, total = torch.arange(count), torch.full((1,), count, dtype=torch.int64)
    spread = index * (base * STEPS)
    row = torch.floor_divide(spread, total)
    left = (spread - row * total).float() / total.float()
    angle = left.unsqueeze(1) * frequencies
    sine, cosine = embedding(row, sines), embedding(row, cosines)
    more, less = torch.sin(angle), torch.cos(angle)
    return torch.cat([sine * less + cosine * more, cosine * less - sine * more], dim=1)


@functools.lru_cache(maxsize=4)
def _tables(channels: int, base: int, scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sines and cosines `[base * STEPS, channels // 2]` of the positions in the table, and the angle
    `[channels // 2]` between two of them: computed in float64, rounded once."""
    import torch
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes():
        half = channels // 2
        exponents = torch.arange(half, dtype=torch.float64) / (channels / 2.0)
        frequencies = 1.0 / 10000**exponents
        places = torch.arange(base * STEPS, dtype=torch.float64) / (STEPS * scale)
        angles = torch.outer(places, frequencies)
        step = frequencies / (STEPS * scale)
        return angles.sin().float(), angles.cos().float(), step.float()
