"""Two pictures side by side: how far apart they are, and what the difference looks like."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from exporter.parity.metrics import psnr_db

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

AMPLIFICATION = 64
"""One level of 255 becomes a visible quarter of the scale; four levels or more saturate."""


@dataclass(frozen=True)
class Comparison:
    """A painted picture against the reference's.

    Attributes:
        psnr: In dB over 8-bit RGB, peak 255; infinite when every byte is the same.
        largest: The largest difference of a channel of a pixel, in levels of 255.
        difference: |picture - reference| × `AMPLIFICATION`, clipped to 255.
    """

    psnr: float
    largest: int
    difference: Picture


def compare(picture: Picture, reference: Picture) -> Comparison:
    """Compare two pictures of the same size.

    Raises:
        ValueError: They differ in size.
    """
    from PIL import Image

    painted, truth = _levels(picture), _levels(reference)
    if painted.shape != truth.shape:
        raise ValueError(f"a picture of {painted.shape} cannot be compared with one of {truth.shape}")
    distance = np.abs(painted - truth)
    amplified = np.minimum(distance * AMPLIFICATION, 255).astype(np.uint8)
    return Comparison(
        psnr=psnr_db(painted / 255.0, truth / 255.0, peak=1.0),
        largest=int(distance.max()),
        difference=Image.fromarray(amplified),
    )


def data_uri(picture: Picture) -> str:
    """The picture as a PNG inside a `data:` address, so that the page needs no other file."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _levels(picture: Picture) -> np.ndarray:
    """Height × width × 3, int16, 0 … 255."""
    return np.asarray(picture.convert("RGB")).astype(np.int16)
