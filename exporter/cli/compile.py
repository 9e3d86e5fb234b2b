"""`exporter compile`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli._group import Command
from exporter.cli._output import Output
from exporter.cli._show import bytes_text, seconds_text, table

if TYPE_CHECKING:
    from rich.console import Console

    from exporter.compiled import Compiled


@click.command(
    "compile",
    cls=Command,
    examples=(
        ("Compile an OpenVINO artifact for the processor", "exporter compile shapes-ov --device CPU"),
        (
            "For a GPU, in the arithmetic that it prefers",
            "exporter compile shapes-ov --device GPU --precision-hint f16",
        ),
        ("Keep what ONNX Runtime makes of the graphs", "exporter compile shapes-onnx"),
    ),
)
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--device", metavar="NAME", help="Device, as the runtime names it: CPU, GPU, NPU.  [default: the CPU]"
)
@click.option(
    "--precision-hint", type=click.Choice(["f32", "bf16", "f16", "default"]),
    help="Arithmetic for runtimes that choose it.  [default: what the artifact was made for]",
)  # fmt: skip
@click.pass_obj
def command(output: Output, /, artifact: Path, device: str | None, precision_hint: str | None) -> int:
    """Compile ARTIFACT for a device of this machine, so that `run` and `bench` open it sooner.

    OpenVINO exports the compiled model, ONNX Runtime the graph as it has optimised it. What is made is
    compared with the artifact and lies in its folder `compiled/`; it is used while the artifact, the
    device, its driver and the runtime are those it was made for. It is not published by `push`.
    """
    from exporter.compiled import compile_artifact

    with output.progress() as progress:
        made, folder = compile_artifact(
            artifact, device=device, precision_hint=precision_hint, progress=progress
        )
    output.result(
        {"folder": folder, **made.model_dump(mode="json")},
        human=lambda console: _show(console, made, folder),
        quiet=str(folder),
    )
    return 0


def _show(console: Console, made: Compiled, folder: Path) -> None:
    rows = [
        (
            part.entry,
            bytes_text(sum(file.bytes for file in part.files)),
            seconds_text(part.seconds),
            f"{part.plain:.2f} s",
            f"{part.opened:.2f} s",
            "none" if part.difference == 0 else f"{part.difference:.1e}",
        )
        for part in made.parts
    ]
    heads = ("file", "compiled>", "took>", "opened before>", "now>", "difference>")
    console.print(table(heads, rows))
    told = ", ".join(f"{name} {value}" for name, value in made.runtime.items())
    console.print(f"{folder}  for {told}, hint {made.precision_hint}", soft_wrap=True)
