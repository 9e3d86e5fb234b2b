"""Looks at a picture and says whether it shows what the prompt asks for.

Plain image processing, no model: the background is read off the border, the shape's colour off its
inside, its kind by overlap with templates, its place and size off its bounding box. It shares no
code with the renderer of the training pictures, forgives soft edges and a few levels of colour,
and forgives nothing about the meaning. What cannot be read is None, and None is never right.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

ATTRIBUTES = ("background", "colour", "shape", "place", "size")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40),
    "orange": (245, 130, 30),
    "yellow": (250, 220, 50),
    "green": (40, 160, 70),
    "blue": (40, 90, 220),
    "purple": (150, 60, 190),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
    "gray": (128, 128, 128),
}
ALIASES = {"grey": "gray", "centre": "center", "big": "large"}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
PLACES = ("left", "right", "top", "bottom", "center")
SIZES = ("small", "large")

MAX_COLOUR_DISTANCE = 26.0  # CIELAB; the closest two names are 32 apart, the nearer one wins
MIN_OVERLAP = {"circle": 0.90, "square": 0.88}  # with the template; any blob is a bit like these
MIN_OVERLAP_OTHERS = 0.78
GROWTHS = (1.0, 1.06, 1.12, 1.2)  # sizes of a template over the box found
SOFTNESS = 0.8  # of an edge, pixels
MIN_LEAD = 0.04  # of the best template over the second
OFF_CENTRE = 0.105  # of the picture's side; the places lie about 0.2 away
LARGE_SIDE = 0.345  # of the picture's shorter side; small is about 0.24, large 0.46


@dataclass(frozen=True)
class Judgement:
    """What was read off the picture (None: unreadable) and which attributes are wrong."""

    background: str | None
    colour: str | None
    shape: str | None
    place: str | None
    size: str | None
    wrong: tuple[str, ...]
    reason: str = ""

    @property
    def ok(self) -> bool:
        """True when every attribute that the prompt names was read and is right."""
        return not self.wrong


def read_prompt(prompt: str) -> dict[str, str]:
    """The attributes a prompt names; it must name at least a shape."""
    words = [ALIASES.get(word, word) for word in re.findall(r"[a-z]+", prompt.lower())]
    found: dict[str, str] = {}
    for index, word in enumerate(words):
        if word in COLOURS:
            is_background = words[index + 1 : index + 2] == ["background"]
            found["background" if is_background else "colour"] = word
        for name, values in (("shape", SHAPES), ("place", PLACES), ("size", SIZES)):
            if word in values:
                found[name] = word
    if "shape" not in found:
        raise ValueError(f"the prompt names no shape the judge knows: {prompt!r}")
    return found


def judge(image: Image.Image | np.ndarray, prompt: str) -> Judgement:
    """Judge a picture: PIL, or an array [h, w, 3] of uint8 0..255 or of floats 0..1."""
    wanted = read_prompt(prompt)
    seen: dict[str, str | None] = dict.fromkeys(ATTRIBUTES)
    try:
        _look(_pixels(image), seen)
        reason = ""
    except _UnreadableError as fault:
        reason = str(fault)
    wrong = tuple(name for name in ATTRIBUTES if name in wanted and seen[name] != wanted[name])
    if reason and not wrong:  # a picture with a fault is never right, whatever the prompt left out
        wrong = ("shape",)
    return Judgement(**seen, wrong=wrong, reason=reason)


class _UnreadableError(Exception):
    """Says why reading a picture stopped; what was read before stands."""


def _pixels(image: Image.Image | np.ndarray) -> np.ndarray:
    """Float64 [h, w, 3], 0..255, or a refusal."""
    if isinstance(image, Image.Image):
        if image.mode in ("F", "I") or image.mode.startswith("I;"):
            raise _UnreadableError(f"not a colour picture: mode {image.mode}")
        pixels = np.asarray(image.convert("RGB")).astype(np.float64)
    else:
        pixels = np.asarray(image)
        scale = 255.0 if np.issubdtype(pixels.dtype, np.floating) else 1.0
        pixels = pixels.astype(np.float64) * scale
    if pixels.ndim != 3 or pixels.shape[2] != 3 or min(pixels.shape[:2]) < 32:
        raise _UnreadableError(f"not a picture of at least 32x32 in colour: {pixels.shape}")
    if not np.isfinite(pixels).all():
        raise _UnreadableError("NaN or Inf in the picture")
    if pixels.min() < -0.5 or pixels.max() > 255.5:
        raise _UnreadableError("values out of range")
    return pixels


def _look(pixels: np.ndarray, seen: dict[str, str | None]) -> None:
    """Fill `seen` step by step; each step needs the ones before it."""
    height, width = pixels.shape[:2]
    edge = max(2, min(height, width) // 32)
    inner = np.zeros((height, width), bool)
    inner[edge:-edge, edge:-edge] = True
    border = pixels[~inner]
    ground = np.median(border, axis=0)
    if np.mean(_distance(border, ground) > 15.0) > 0.05:
        raise _UnreadableError("the border is not of one colour")
    seen["background"] = _name(ground)

    away = _distance(pixels, ground)
    strong = away > max(12.0, 0.5 * float(np.quantile(away, 0.995)))
    if strong.mean() < 0.004:
        raise _UnreadableError("no shape stands out from the background")
    core = strong & (away > 0.8 * float(np.median(away[strong])))
    colour = np.median(pixels[core], axis=0)
    if _distance(colour, ground) < 12.0:
        raise _UnreadableError("the shape is as the background")
    # Along the line from background to shape colour, the edge lies half-way.
    line = colour - ground
    share = ((pixels - ground) @ line) / (line @ line)
    mask = share > 0.5
    parts = _components(mask)
    shape = parts[0]
    if mask.sum() - shape.sum() > 0.05 * mask.sum():
        raise _UnreadableError("more than one shape")
    if shape.sum() < 0.004 * shape.size:
        raise _UnreadableError("the shape is a speck")
    # A soft edge mixes the two colours; any third colour, or a faint inside, is a fault.
    mixed = ground + share.clip(-0.2, 1.2)[..., None] * line
    third = np.linalg.norm(pixels - mixed, axis=-1) > 40.0
    if third.sum() > 0.06 * shape.sum():
        raise _UnreadableError("there is a third colour")
    if np.mean(np.abs(share[shape] - 1.0) < 0.2) < 0.5:
        raise _UnreadableError("the shape is not of one colour")
    rest = ~_grow(_grow(_grow(shape)))
    if rest.any() and np.mean(_distance(pixels[rest], ground) > 15.0) > 0.02:
        raise _UnreadableError("the background is not of one colour")
    seen["colour"] = _name(colour)

    alone = np.where(_grow(_grow(shape)), share, 0.0)
    rows, columns = np.flatnonzero(shape.any(axis=1)), np.flatnonzero(shape.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    seen["size"] = "large" if max(bottom - top, right - left) > LARGE_SIDE * min(height, width) else "small"
    across, down = (left + right) / 2 / width - 0.5, (top + bottom) / 2 / height - 0.5
    seen["place"] = _place(across, down)
    if seen["place"] is None:
        seen["shape"] = _kind(alone, (top, bottom, left, right))
        raise _UnreadableError("the shape is between two places")
    seen["shape"] = _kind(alone, (top, bottom, left, right))


def _place(across: float, down: float) -> str | None:
    """The named place, or None for a corner, which has no name."""
    if max(abs(across), abs(down)) < OFF_CENTRE:
        return "center"
    if min(abs(across), abs(down)) >= OFF_CENTRE:
        return None
    if abs(across) > abs(down):
        return "left" if across < 0 else "right"
    return "top" if down < 0 else "bottom"


def _kind(share: np.ndarray, box: tuple[int, int, int, int]) -> str | None:
    """The template that overlaps the shape best, if it does so well and clearly.

    `share` is 0 on the background and 1 on the shape; `box` is top, bottom, left, right. Softness
    rounds corners and so shrinks the box: templates are tried a little larger too, softened as a
    picture is, and the overlap is counted in shares of a pixel.
    """
    top, bottom, left, right = box
    height, width = bottom - top, right - left
    if not 0.75 < width / height < 1.35:
        return None
    margin = max(3, round(0.15 * max(height, width)))
    padded = np.pad(share, margin)
    window = padded[top : bottom + 2 * margin, left : right + 2 * margin].clip(0.0, 1.0)
    fits: dict[str, float] = {}
    for name, form in _templates().items():
        for growth in GROWTHS:
            size = (round(width * growth), round(height * growth))
            fitted = form.resize(size, Image.BOX)
            canvas = Image.new("L", (window.shape[1], window.shape[0]), 0)
            at = ((canvas.width - size[0]) // 2, (canvas.height - size[1]) // 2)
            canvas.paste(fitted, at)
            soft = np.asarray(canvas.filter(ImageFilter.GaussianBlur(SOFTNESS))) / 255.0
            overlap = np.minimum(soft, window).sum() / np.maximum(soft, window).sum()
            fits[name] = max(fits.get(name, 0.0), float(overlap))
    (second, _), (best, name) = sorted((fit, name) for name, fit in fits.items())[-2:]
    enough = best >= MIN_OVERLAP.get(name, MIN_OVERLAP_OTHERS)
    return name if enough and best - second >= MIN_LEAD else None


@cache
def _templates() -> dict[str, Image.Image]:
    """A large black and white drawing ("L") of each shape, filling its bounding box."""
    side = 512

    def blank() -> tuple[Image.Image, ImageDraw.ImageDraw]:
        canvas = Image.new("L", (side, side), 0)
        return canvas, ImageDraw.Draw(canvas)

    drawn: dict[str, Image.Image] = {}
    full = (0, 0, side - 1, side - 1)
    drawn["circle"], pen = blank()
    pen.ellipse(full, fill=255)
    drawn["square"], pen = blank()
    pen.rectangle(full, fill=255)
    drawn["triangle"], pen = blank()
    pen.polygon([(side / 2, 0), (side - 1, side - 1), (0, side - 1)], fill=255)
    drawn["cross"], pen = blank()
    arm = 0.34 * side
    pen.rectangle((arm, 0, side - arm, side - 1), fill=255)
    pen.rectangle((0, arm, side - 1, side - arm), fill=255)
    drawn["ring"], pen = blank()
    pen.ellipse(full, fill=255)
    pen.ellipse((side * 0.25, side * 0.25, side * 0.75, side * 0.75), fill=0)
    drawn["star"], pen = blank()
    turns = np.arange(10) * np.pi / 5
    reach = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
    points = np.stack((np.sin(turns) * reach, -np.cos(turns) * reach), axis=1)
    points = (points - points.min(axis=0)) / np.ptp(points, axis=0) * (side - 1)
    pen.polygon([tuple(point) for point in points], fill=255)
    return drawn


def _lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of sRGB [..., 3] in 0..255."""
    linear = np.asarray(rgb, np.float64) / 255.0
    linear = np.where(linear > 0.04045, ((linear + 0.055) / 1.055) ** 2.4, linear / 12.92)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), axis=-1)


def _distance(pixels: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """CIELAB distance of each pixel to one colour."""
    return np.linalg.norm(_lab(pixels) - _lab(colour), axis=-1)


def _name(colour: np.ndarray) -> str | None:
    """The nearest colour name, or None when none is near."""
    distance, name = min((float(_distance(colour, np.array(c))), n) for n, c in COLOURS.items())
    return name if distance <= MAX_COLOUR_DISTANCE else None


def _shifted(mask: np.ndarray) -> list[np.ndarray]:
    padded = np.pad(mask, 1)
    return [padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]]


def _grow(mask: np.ndarray) -> np.ndarray:
    return mask | np.logical_or.reduce(_shifted(mask))


def _components(mask: np.ndarray) -> list[np.ndarray]:
    """The connected parts of a mask (four neighbours), largest first; at least one is returned."""
    left, parts = mask.copy(), []
    while left.any():
        seed = np.unravel_index(int(left.argmax()), left.shape)
        member, frontier = np.zeros_like(mask), [seed]
        member[seed] = True
        while frontier:
            y, x = frontier.pop()
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= v < mask.shape[0] and 0 <= u < mask.shape[1]
                if inside and left[v, u] and not member[v, u]:
                    member[v, u] = True
                    frontier.append((v, u))
        left &= ~member
        parts.append(member)
        if len(parts) > 50:
            raise _UnreadableError("noise")
    return sorted(parts, key=lambda part: -int(part.sum())) or [mask]
