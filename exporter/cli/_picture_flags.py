"""Flags that give a model a picture: to start from, to repaint, to follow, to take after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from exporter.cli._types import Finite

Function = TypeVar("Function", bound=Callable[..., Any])

FLAGS = [
    click.option(
        "--image", type=click.Path(path_type=Path), metavar="FILE",
        help="Start from this picture; its size is kept unless --height and --width say otherwise.",
    ),
    click.option(
        "--strength", type=Finite(),
        help="How much of the picture is taken away first, above 0 to 1.  [default: the pipeline's]",
    ),
    click.option(
        "--mask", type=click.Path(path_type=Path), metavar="FILE",
        help="Repaint the picture where this one is white.",
    ),
    click.option(
        "--control", "control", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
        help="Follow this picture, as the ControlNet (or T2I-Adapter) reads it: edges, a pose; once for "
        "each.",
    ),
    click.option(
        "--control-scale", "control_scale", multiple=True, type=Finite(),
        help="How much that picture counts; once for all of them, or for each.  [default: the pipeline's]",
    ),
    click.option(
        "--ip-adapter-image", type=click.Path(path_type=Path), metavar="FILE",
        help="Take after this picture, as an IP-Adapter looks at it.",
    ),
    click.option(
        "--ip-adapter-scale", type=Finite(), help="How much that picture counts.  [default: 1]"
    ),
]  # fmt: skip


def picture_flags(function: Function) -> Function:
    """Add them all to a command."""
    for flag in reversed(FLAGS):
        function = flag(function)
    return function
