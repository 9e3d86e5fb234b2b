"""Small drawings for the report, as inline SVG. Colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

WIDTH, HEIGHT = 460, 150
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 22


def curve(series: Sequence[tuple[str, Sequence[float | None]]]) -> Markup:
    """Lines over steps on a logarithmic axis.

    Args:
        series: (CSS class, values by step); None and non-finite values leave a gap.
    """
    values = [v for _, line in series for v in line if v is not None and math.isfinite(v) and v > 0]
    if not values:
        return Markup("")
    low, high = _decades(values)
    steps = max(len(line) for _, line in series)
    parts = [_axis(low, high)]

    def x(i: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (i / max(steps - 1, 1))

    for name, line in series:
        pieces: list[list[str]] = [[]]
        for i, value in enumerate(line):
            if value is None or not math.isfinite(value) or value <= 0:
                pieces.append([])
                continue
            pieces[-1].append(f"{x(i):.1f},{_y(value, low, high):.1f}")
        for piece in pieces:
            if len(piece) > 1:
                parts.append(f'<polyline class="{name}" points="{" ".join(piece)}"/>')
            elif piece:
                cx, cy = piece[0].split(",")
                parts.append(f'<circle class="{name}" cx="{cx}" cy="{cy}" r="2"/>')
    for i in sorted({0, steps - 1}):
        anchor = "start" if i == 0 else "end"
        parts.append(f'<text x="{x(i):.1f}" y="{HEIGHT - 7}" text-anchor="{anchor}">step {i + 1}</text>')
    return _svg(parts, "distance from the reference by step")


def histogram(edges: Sequence[float], front: Sequence[int], back: Sequence[int]) -> Markup:
    """Two histograms over log-spaced bins, the second one in grey behind the first.

    Args:
        edges: Of the inner bins.
        front / back: Counts as in `Metrics.histogram`: zero, below, inner bins, above.
    """
    used = [i for i, (a, b) in enumerate(zip(front, back, strict=True)) if a or b]
    if not used:
        return Markup("")
    first, last = max(used[0], 0), used[-1]
    count = last - first + 1
    step = (WIDTH - LEFT - RIGHT) / count
    parts = []
    for name, counts, inset in (("ghost", back, 0.02), ("fill", front, 0.22)):
        total = max(sum(counts), 1)
        largest = max(max(c / max(sum(s), 1) for c in s) for s in (front, back))
        for i in range(first, last + 1):
            height = (HEIGHT - TOP - BOTTOM) * (counts[i] / total) / largest
            if height:
                parts.append(
                    f'<rect class="{name}" x="{LEFT + (i - first + inset) * step:.1f}" '
                    f'y="{HEIGHT - BOTTOM - height:.1f}" width="{step * (1 - 2 * inset):.1f}" '
                    f'height="{height:.1f}"/>'
                )
    baseline = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{baseline}" y2="{baseline}"/>')
    for i in sorted({first, (first + last) // 2, last}):
        x = LEFT + (i - first + 0.5) * step
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 7}" text-anchor="middle">{_bin(edges, i)}</text>')
    return _svg(parts, "histogram of differences")


def _bin(edges: Sequence[float], index: int) -> str:
    if index == 0:
        return "equal"
    if index == 1:
        return f"&lt; {edges[0]:.0e}"
    return f"{edges[min(index - 2, len(edges) - 1)]:.0e}"


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _y(value: float, low: int, high: int) -> float:
    share = (math.log10(value) - low) / (high - low)
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _axis(low: int, high: int) -> str:
    step = max(1, (high - low) // 4)
    parts = []
    for power in range(low, high + 1, step):
        y = _y(10.0**power, low, high)
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 3:.1f}" text-anchor="end">1e{power}</text>')
    return "".join(parts)


def _svg(parts: Sequence[str], label: str) -> Markup:
    body = "".join(parts)
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{body}</svg>')
