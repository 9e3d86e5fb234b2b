"""The page of a benchmark: table, speed against fidelity, and the pictures. Needs no network to read."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from exporter.artifact import write_text_atomic
from exporter.errors import DestinationError

if TYPE_CHECKING:
    from exporter.bench import BenchResult, Row

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 320, 64, 150, 20, 44
LETTER, LINE, NEAR = 7.5, 15, 150
"""Of a name beside a point: width of a letter, height of a line, and how far apart two points are whose names
could touch."""
IDENTICAL = 100.0
"""Where a picture that is equal in every byte stands on an axis of decibels."""


def check_place(path: Path) -> None:
    """Before anything is measured: whether the page can be written there.

    Raises:
        DestinationError: It cannot.
    """
    if path.is_dir():
        raise DestinationError(f"The page cannot be written to {path}: it is a folder.", hint="Name a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DestinationError(
            f"The page cannot be written to {path}: {reason}.", hint="Name another place with --page."
        ) from error


def write_page(result: BenchResult, path: Path) -> None:
    """Write the page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from exporter.bench.given import told
    from exporter.demo.pictures import data_uri
    from exporter.planning import human

    environment = Environment(
        loader=PackageLoader("exporter.bench", "."), undefined=StrictUndefined, autoescape=True,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"human": human, "seconds": seconds, "decibels": decibels, "told": told}
    style = Path(__file__).parents[1] / "demo" / "style.css"
    page = environment.get_template("page.html.j2").render(
        result=result,
        rows=result.rows,
        missing=math.nan,
        parts=list(dict.fromkeys(part for row in result.rows for part in row.parts)),
        pictures=[(row, data_uri(row.picture)) for row in result.rows if row.picture is not None],
        scatter=scatter(result.rows),
        style=Markup(style.read_text(encoding="utf-8")),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, page)


def seconds(value: float) -> str:
    """`0.43 s`, `12 ms`."""
    if not math.isfinite(value):
        return "–"
    return f"{value * 1000:.1f} ms" if value < 0.1 else f"{value:.2f} s"


def decibels(value: float | None) -> str:
    """`38.2 dB`; an equal picture is `identical`."""
    if value is None or math.isnan(value):
        return "–"
    return "identical" if math.isinf(value) else f"{value:.1f} dB"


def scatter(rows: list[Row]) -> Markup:
    """Speed (×, logarithmic) against PSNR: up and to the right is better."""
    points = [
        (row, row.speedup, row.psnr) for row in rows if row.speedup is not None and row.psnr is not None
    ]
    if not points:
        return Markup("")
    speeds = [1.0, *(s for _, s, _ in points)]
    low, high = math.log2(min(speeds)) - 0.3, math.log2(max(speeds)) + 0.3
    levels = [min(p, IDENTICAL) for _, _, p in points]
    bottom, top = min(20.0, min(levels)), IDENTICAL

    def x(speed: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log2(speed) - low) / (high - low)

    def y(psnr: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (top - min(psnr, IDENTICAL)) / (top - bottom)

    parts = []
    right, base = WIDTH - RIGHT, HEIGHT - BOTTOM
    for level in range(int(bottom // 20) * 20, 101, 20):
        if bottom <= level:
            at = f"{y(level):.1f}"
            text = "identical" if level == IDENTICAL else f"{level} dB"
            parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{at}" y2="{at}"/>')
            parts.append(f'<text x="{LEFT - 8}" y="{y(level) + 4:.1f}" text-anchor="end">{text}</text>')
    for power in range(math.ceil(low), math.floor(high) + 1):
        at = f"{x(2.0**power):.1f}"
        parts.append(f'<line class="axis" x1="{at}" x2="{at}" y1="{TOP}" y2="{base}"/>')
        parts.append(f'<text x="{at}" y="{base + 18}" text-anchor="middle">{2.0**power:g}×</text>')
    places = [(x(speed), y(psnr)) for _, speed, psnr in points]
    for (row, _, _), (at_x, at_y), line in zip(points, places, _lines(places), strict=True):
        parts.append(f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="5"/>')
        name = Path(row.name).name or row.name
        # A name that would leave the picture stands on the other side of its point.
        leaves = at_x + 9 + LETTER * len(name) > WIDTH
        side = f'x="{at_x - 9:.1f}" text-anchor="end"' if leaves else f'x="{at_x + 9:.1f}"'
        parts.append(f'<text class="name" {side} y="{line + 4:.1f}">{escape(name)}</text>')
    label = f"speed against {escape(rows[0].name)}, and likeness to its picture"
    head = f'<svg class="scatter" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    return Markup(f"{head}{''.join(parts)}</svg>")


def _lines(places: list[tuple[float, float]]) -> list[float]:
    """Where the names of points stand: at their own height, but no two on each other."""
    lines: dict[int, float] = {}
    for number in sorted(range(len(places)), key=lambda each: places[each][1]):
        line = places[number][1]
        near = [lines[other] for other in lines if abs(places[other][0] - places[number][0]) < NEAR]
        lines[number] = max([line, *(other + LINE for other in near if other + LINE > line)])
    return [lines[number] for number in range(len(places))]
