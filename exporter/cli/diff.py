"""`exporter diff`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from exporter.cli._group import Command
from exporter.cli._output import Output
from exporter.cli._show import table

if TYPE_CHECKING:
    from rich.console import Console

    from exporter.difference import Difference


@click.command(
    "diff",
    cls=Command,
    examples=(
        ("What a newer conversion changed", "exporter diff shapes-onnx shapes-onnx-new"),
        ("Whether an artifact is of this checkpoint", "exporter diff shapes-onnx builtin:shapes"),
    ),
)
@click.argument("a", metavar="ARTIFACT|SOURCE")
@click.argument("b", metavar="ARTIFACT|SOURCE")
@click.pass_obj
def command(output: Output, /, a: str, b: str) -> int:
    """Say how two artifacts, or an artifact and a checkpoint, differ.

    Source files, options, tool versions, components with their inputs and outputs, files by hash,
    verdicts and errors are compared, from manifests, headers and reports; nothing is run. The exit
    code is 0 whether or not they differ; --quiet prints `same` or `different`.
    """
    from exporter.difference import compare

    found = compare(a, b)
    document = {**found.model_dump(mode="json"), "same": found.same}
    output.result(
        document,
        human=lambda console: _show(console, found),
        quiet="same" if found.same else "different",
    )
    return 0


def _show(console: Console, found: Difference) -> None:
    if found.same:
        console.print("They do not differ.")
        return
    rows = [(entry.area, entry.what, _text(entry.a), _text(entry.b)) for entry in found.entries]
    console.print(table(("", "", "a", "b"), rows))
    console.print(f"a: {found.a}", soft_wrap=True)
    console.print(f"b: {found.b}", soft_wrap=True)


def _text(value: Any) -> str:
    return "–" if value is None else "yes" if value is True else "no" if value is False else str(value)
