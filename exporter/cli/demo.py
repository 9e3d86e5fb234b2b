"""`exporter demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli._errors import explain
from exporter.cli._group import Command
from exporter.cli._output import Output
from exporter.cli._show import bytes_text, seconds_text, table, verdict_code

if TYPE_CHECKING:
    from rich.console import Console

    from exporter.demo import DemoResult


@click.command(
    "demo",
    cls=Command,
    examples=(
        ("Every target whose backend is installed; prints where the page is", "exporter demo"),
        ("One target, into another folder", "exporter demo --to onnx -o my-demo"),
    ),
)
@click.option(
    "-o", "--output", "folder", type=click.Path(path_type=Path), metavar="DIR",
    default=Path("artifacts/demo"), show_default=True, help="Where the artifacts and index.html go.",
)  # fmt: skip
@click.option(
    "--to", "targets", multiple=True, metavar="TARGET",
    help="Only this target; repeatable.  [default: all whose backend is installed]",
)  # fmt: skip
@click.option(
    "--source", metavar="SOURCE", default="builtin:shapes", show_default=True,
    help="Another checkpoint, as for convert.",
)  # fmt: skip
@click.option("--seed", type=int, default=7, show_default=True, help="Of the noise the pictures start from.")
@click.option(
    "--steps", type=click.IntRange(min=1), default=25, show_default=True, help="Scheduler steps of a picture."
)
@click.pass_obj
def command(
    output: Output, /, folder: Path, targets: tuple[str, ...], source: str, seed: int, steps: int
) -> int:
    """Convert the embedded model to every installed target, verify, paint, and write one page.

    The page shows each target's pictures beside the PyTorch reference with an amplified difference,
    the verdicts, sizes and times. It needs no network, neither to make nor to read. The exit code is
    the worst verdict: 0 PASS, 1 FAIL, 5 INCONCLUSIVE; the page is written in any case.
    """
    from exporter import demo

    with output.progress() as progress:
        result = demo.run(folder, targets=targets, source=source, seed=seed, steps=steps, progress=progress)
    output.result(result.as_dict(), human=lambda console: _show(console, result), quiet=str(result.page))
    for row in result.rows:
        if row.error is not None:
            failure = explain(row.error)
            output.warn(f"{row.title}: {failure.trace or failure.message}")
    return _exit_code(result)


def _show(console: Console, result: DemoResult) -> None:
    from exporter.demo.page import decibel

    rows = [
        (
            row.title,
            row.status if row.status != "MISSING" else "not installed",
            bytes_text(row.bytes) if row.bytes is not None else "",
            seconds_text(row.painted.seconds) if row.painted else "",
            decibel(row.lowest_psnr) if row.painted else row.install or "",
        )
        for row in result.rows
    ]
    console.print(table(("format", "verdict", "on disk>", "a picture>", "against PyTorch"), rows))
    console.print(f"The page: {result.page}", soft_wrap=True)


def _exit_code(result: DemoResult) -> int:
    """A FAIL first, then what stopped a target, then INCONCLUSIVE."""
    if any(row.status == "FAIL" for row in result.rows):
        return verdict_code("FAIL")
    for row in result.rows:
        if row.error is not None:
            return explain(row.error).exit_code
    return verdict_code("PASS" if result.ok else "INCONCLUSIVE")
