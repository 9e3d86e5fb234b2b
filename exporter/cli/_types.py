"""Kinds of values that Click's own types get wrong."""

from __future__ import annotations

import math
from typing import Any

import click

from exporter.storage import parse_size


class Finite(click.ParamType):
    """A finite number; Click's float ranges let NaN through, because NaN compares false with both ends.

    Args:
        above: The number has to be greater than this.
    """

    name = "number"

    def __init__(self, *, above: float = -math.inf) -> None:
        self.above = above

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            self.fail(f"{value!r} is not a number.", param, ctx)
        if not (math.isfinite(number) and number > self.above):
            limit = f" above {self.above:g}" if math.isfinite(self.above) else ""
            self.fail(f"{value!r} is not a finite number{limit}.", param, ctx)
        return number


class Size(click.ParamType):
    """Bytes, as people write them: `16GB`, `500MB`, `2GiB`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else parse_size(str(value))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)
