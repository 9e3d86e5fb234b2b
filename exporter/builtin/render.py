"""Draws the training pictures on the training device: antialiased, batched, no data loading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from exporter.builtin.prompts import SHAPES, Scene

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (245, 130, 30),
    "yellow": (250, 220, 50),
    "green": (40, 160, 70),
    "blue": (40, 90, 220),
    "purple": (150, 60, 190),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
    "gray": (128, 128, 128),
}
RADIUS = {"small": 15.5, "large": 30.0}  # pixels of a 128 pixel picture
OFFSET = {  # of the centre of the shape's bounding box from the picture's, in the same pixels
    "left": (-27.0, 0.0),
    "right": (27.0, 0.0),
    "top": (0.0, -27.0),
    "bottom": (0.0, 27.0),
    "center": (0.0, 0.0),
}
JITTER_PLACE = 2.5  # pixels, each axis, uniform
JITTER_SIZE = 0.06  # fraction of the radius, uniform
JITTER_COLOUR = 10.0  # of 255, each channel, uniform


@dataclass(frozen=True)
class SceneTensors:
    """Scenes as tensors of one row each, ready to be indexed and drawn on their device."""

    shape: torch.Tensor  # int64 [n], index into SHAPES
    colour: torch.Tensor  # float32 [n, 3], 0..255
    background: torch.Tensor  # float32 [n, 3], 0..255
    radius: torch.Tensor  # float32 [n], pixels
    offset: torch.Tensor  # float32 [n, 2], pixels, x then y

    @classmethod
    def of(cls, scenes: Sequence[Scene], device: torch.device) -> SceneTensors:
        """Look every attribute up once, so that drawing needs no Python loop."""
        return cls(
            shape=torch.tensor([SHAPES.index(s.shape) for s in scenes], device=device),
            colour=torch.tensor([PALETTE[s.colour] for s in scenes], device=device).float(),
            background=torch.tensor([PALETTE[s.background] for s in scenes], device=device).float(),
            radius=torch.tensor([RADIUS[s.size] for s in scenes], device=device),
            offset=torch.tensor([OFFSET[s.place] for s in scenes], device=device),
        )


def _star(x: torch.Tensor, y: torch.Tensor, outer: float, inner: float) -> torch.Tensor:
    """Signed distance of a five-pointed star, point up, `inner` its waist as a fraction."""
    cos, sin = 0.809016994375, 0.587785252292
    x, y = x.abs(), -y
    for kx, ky in ((cos, -sin), (-cos, -sin)):
        fold = 2.0 * (kx * x + ky * y).clamp(min=0.0)
        x, y = x - fold * kx, y - fold * ky
    x, y = x.abs(), y - outer
    bx, by = inner * sin, inner * cos - 1.0
    along = ((x * bx + y * by) / (bx * bx + by * by)).clamp(0.0, outer)
    distance = torch.hypot(x - bx * along, y - by * along)
    return distance * torch.sign(y * bx - x * by)


def _signed_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """[len(SHAPES), ...] signed distances, negative inside, in units of the radius, y down."""
    ax, ay, r = x.abs(), y.abs(), torch.hypot(x, y)
    return torch.stack(
        (
            r - 1.0,
            torch.maximum(ax, ay) - 0.9,
            torch.maximum(y - 0.87, (1.74 * ax - (y + 0.87)) / 2.007),
            _star(x, y - 0.0955 * 1.08, 1.08, 0.45),
            torch.minimum(torch.maximum(ax - 1.0, ay - 0.32), torch.maximum(ax - 0.32, ay - 1.0)),
            (r - 0.75).abs() - 0.25,
        )
    )


def draw(scenes: SceneTensors, rows: torch.Tensor, size: int, rng: torch.Generator) -> torch.Tensor:
    """Draw the scenes at `rows` (int64 [b]) with fresh jitter: float32 [b, 3, size, size], -1..1.

    `rng` must live on the device of the scenes. Jitter is small enough that no attribute of a
    picture can be taken for another.
    """
    count, device = len(rows), rows.device

    def jitter(*shape: int) -> torch.Tensor:
        return torch.rand(shape, device=device, generator=rng) * 2.0 - 1.0

    unit = size / 128.0
    radius = scenes.radius[rows] * (1.0 + JITTER_SIZE * jitter(count)) * unit
    centre = size / 2.0 + (scenes.offset[rows] + JITTER_PLACE * jitter(count, 2)) * unit
    colour = scenes.colour[rows] + JITTER_COLOUR * jitter(count, 3)
    background = scenes.background[rows] + JITTER_COLOUR * jitter(count, 3)

    axis = torch.arange(size, device=device) + 0.5
    scale = radius[:, None, None]
    x = ((axis[None, None, :] - centre[:, 0, None, None]) / scale).expand(count, size, size)
    y = ((axis[None, :, None] - centre[:, 1, None, None]) / scale).expand(count, size, size)
    kinds = scenes.shape[rows]
    distance = _signed_distance(x, y)[kinds, torch.arange(count, device=device)] * scale
    alpha = (0.5 - distance).clamp(0.0, 1.0)[:, None]
    picture = background[:, :, None, None] * (1.0 - alpha) + colour[:, :, None, None] * alpha
    return picture.clamp(0.0, 255.0) / 127.5 - 1.0
