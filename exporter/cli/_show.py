"""How numbers, tables and verdicts look."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

VERDICT_CODES = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 5}


def verdict_code(verdict: str | None) -> int:
    """The exit code of a verdict; None (not verified, as asked) is 0. An unknown word is never a pass."""
    return 0 if verdict is None else VERDICT_CODES.get(verdict, 5)


def bytes_text(count: int | None) -> str:
    """Bytes in the largest decimal unit that gives at least 1: `12.9 MB`."""
    if count is None:
        return "?"
    if abs(count) < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if abs(value) < 999.95 or unit == "TB":
            break
    return f"{value:.1f} {unit}"


def seconds_text(seconds: float) -> str:
    """`0.42 s`, `12.3 s`, `3 min 5 s`."""
    if seconds >= 120:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"


def dims_text(dims: Iterable[int | str]) -> str:
    """`[batch, 4, latent_height, latent_width]`."""
    return "[" + ", ".join(str(dim) for dim in dims) + "]"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A plain table; a header that ends in `>` is a column of numbers, aligned to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for header in headers:
        number = header.endswith(">")
        result.add_column(header.removesuffix(">"), justify="right" if number else "left", overflow="fold")
    for row in rows:
        result.add_row(*(Text(cell) for cell in row))  # Text: cells may hold [brackets]
    return result
