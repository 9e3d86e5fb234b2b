"""`exporter new-architecture`."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli._group import Command
from exporter.cli._output import Output


@click.command(
    "new-architecture",
    cls=Command,
    examples=(
        (
            "Begin a family in the checkout around this folder",
            "exporter new-architecture my_family --pipeline MyFamilyPipeline",
        ),
    ),
)
@click.argument("name")
@click.option(
    "--pipeline", "pipeline_class", required=True, metavar="CLASS",
    help="The pipeline's class, as model_index.json names it.",
)  # fmt: skip
@click.option(
    "--root", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="The source checkout.  [default: the one around the working directory]",
)  # fmt: skip
@click.pass_obj
def command(output: Output, /, name: str, pipeline_class: str, root: Path | None) -> None:
    """Begin the module of a pipeline family, NAME, and its tests.

    Works in a source checkout of exporter. What is written converts a checkpoint that is built like Stable
    Diffusion 1.x, or like PixArt where diffusers' class has a transformer, and its tests pass; “Add a
    family” in exporter/architectures/README.md says how to go on. Nothing is ever overwritten.
    """
    from exporter.scaffold import new_architecture

    made = new_architecture(name, pipeline_class, root)
    lines = [*(f"wrote {file}" for file in made.written), *(f"changed {file}" for file in made.changed)]
    output.result(
        made,
        human=lambda console: console.print("\n".join([*lines, *made.following]), soft_wrap=True),
        quiet="\n".join(made.written),
    )
