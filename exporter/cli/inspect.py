"""`exporter inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from exporter.cli._group import Command
from exporter.cli._output import Output
from exporter.cli._show import bytes_text, dims_text, table
from exporter.cli._source_flags import intake_of, source_flags

if TYPE_CHECKING:
    from rich.console import Console

    from exporter.artifact import TensorRecord
    from exporter.inspection import InspectedComponent, Inspection


@click.command(
    "inspect",
    cls=Command,
    examples=(
        ("The embedded checkpoint", "exporter inspect builtin:shapes"),
        (
            "An artifact: components, sizes, and whether its verdict still holds",
            "exporter inspect shapes-onnx",
        ),
        (
            "What a checkpoint in one file would become, with a LoRA over it",
            "exporter inspect model.safetensors --lora style.safetensors",
        ),
        ("For a script", "exporter inspect ./my-model --json"),
    ),
)
@click.argument("source", metavar="SOURCE|ARTIFACT")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a Hub repository.")
@click.option("--variant", metavar="NAME", help="Weight variant of the checkpoint, such as fp16.")
@source_flags
@click.pass_obj
def command(output: Output, /, source: str, revision: str | None, variant: str | None, **given: Any) -> int:
    """List the components of a checkpoint or an artifact: class, weights, dtypes, bytes, inputs, outputs.

    Only headers and the manifest are read. A pipeline that cannot be converted is listed by folder.
    Damaged components are listed with their problem, and the exit code is then 3.
    """
    from exporter.inspection import inspect

    intake = {name: value for name, value in intake_of(given).items() if value}
    found = inspect(source, revision=revision, variant=variant, **intake)
    output.result(
        found,
        human=lambda console: _show(console, found),
        quiet="\n".join(component.name for component in found.components),
    )
    if output.quiet:
        for problem in found.problems:
            output.warn(problem)
    return 3 if found.problems else 0


def _show(console: Console, found: Inspection) -> None:
    head = f"{found.source}: {found.pipeline_class}"
    if found.kind == "artifact":
        head = f"{found.source}: {found.target} artifact of {found.made_from} ({found.pipeline_class})"
    console.print(head, soft_wrap=True)
    if len(found.tasks) > 1:
        first, *others = found.tasks
        console.print(f"task: {first}; with --task also: {', '.join(others)}", soft_wrap=True)
    if found.revision:
        console.print(f"revision: {found.revision}")
    if found.options:
        given = ", ".join(f"{name} {value}" for name, value in found.options.items() if value is not None)
        console.print(f"options: {given}", soft_wrap=True)
    if found.techniques:
        console.print(f"techniques: {', '.join(found.techniques)}", soft_wrap=True)
    rows = [
        (
            component.name,
            component.class_name or component.entry or "",
            "?" if component.parameters is None else f"{component.parameters:,}",
            ", ".join(component.dtypes),
            bytes_text(component.bytes),
        )
        for component in found.components
    ]
    what = "file" if found.kind == "artifact" else "class"
    console.print(table(("component", what, "parameters>", "dtype", "size>"), rows))
    for component in found.components:
        _show_tensors(console, component)
    if found.parts:
        console.print("without weights: " + ", ".join(f"{k} ({v})" for k, v in found.parts.items()))
    if found.lacking:
        console.print("lacking: " + ", ".join(f"{k} ({v})" for k, v in found.lacking.items()), soft_wrap=True)
    console.print(f"in all: {found.parameters:,} parameters, {bytes_text(found.bytes)}")
    if found.convertible is False:
        console.print(f"{found.pipeline_class} is a family this version does not convert.")
    if found.state is not None:
        console.print(found.state.sentence, soft_wrap=True)
    if found.program is not None:
        console.print(found.program, soft_wrap=True)
    for component in found.components:
        if component.problem:
            console.print(f"problem: {component.name}: {component.problem}", soft_wrap=True)


def _show_tensors(console: Console, component: InspectedComponent) -> None:
    def line(tensor: TensorRecord) -> str:
        return f"{tensor.name} {tensor.dtype} {dims_text(tensor.dims)}"

    if component.inputs or component.outputs:
        console.print(f"{component.name}")
        for label, tensors in (("in ", component.inputs), ("out", component.outputs)):
            for tensor in tensors:
                console.print(f"  {label} {line(tensor)}", soft_wrap=True)
