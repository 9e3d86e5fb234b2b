"""`exporter bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter.cli._group import Command
from exporter.cli._output import Output
from exporter.cli._picture_flags import picture_flags
from exporter.cli._show import bytes_text, seconds_text, table
from exporter.cli._source_flags import intake_of, source_flags
from exporter.cli._trust_flag import trust_flag
from exporter.cli._types import Finite
from exporter.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from exporter.bench import BenchResult, Entrant, Row
    from exporter.progress import Progress


@click.command(
    "bench",
    cls=Command,
    examples=(
        ("An artifact against the PyTorch pipeline", "exporter bench builtin:shapes shapes-onnx"),
        ("Static against dynamic shapes", "exporter bench shapes-ov shapes-ov-1x128x128 --runs 10"),
        (
            "With a page: speed against fidelity, and the pictures",
            "exporter bench builtin:shapes shapes-onnx shapes-ov --page bench.html",
        ),
        (
            "A model that begins with a picture, with one of your own",
            "exporter bench ltx ltx-i2v-onnx --task image-to-video --image harbour.png",
        ),
        (
            "What techniques bring, against the plain pipeline",
            "exporter bench builtin:shapes --recipe pytorch/deep-cache --recipe pytorch/t-gate",
        ),
    ),
)
@click.argument("sources", nargs=-1, metavar="[ARTIFACT|SOURCE]...")
@click.option(
    "--recipe",
    "recipes",
    multiple=True,
    metavar="RECIPE",
    help="Also what a recipe makes, or the pipeline with its techniques; repeatable.",
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of every recipe; repeatable."
)
@click.option("--prompt", metavar="TEXT", help="What is painted.  [default: one that fits the model]")
@click.option("--runs", type=click.IntRange(min=1), default=5, show_default=True, help="Pictures that count.")
@click.option(
    "--warm-up", type=click.IntRange(min=0), default=1, show_default=True, help="Pictures before that."
)
@click.option("--steps", type=click.IntRange(min=1), default=10, show_default=True, help="Scheduler steps.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the first noise.")
@click.option("--guidance", type=Finite(), default=7.5, show_default=True, help="Guidance scale.")
@click.option("--height", type=click.IntRange(min=8), help="Pixels.  [default: native]")
@click.option("--width", type=click.IntRange(min=8), help="Pixels.  [default: native]")
@click.option("--frames", type=click.IntRange(min=1), help="Of a clip, of video models.  [default: native]")
@picture_flags
@click.option("--device", metavar="DEVICE", help="The runtime's device, or PyTorch's.")
@click.option(
    "--precision-hint",
    type=click.Choice(["f32", "bf16", "f16", "default"]),
    help="Arithmetic for runtimes that choose it.  [default: what each artifact was made for]",
)
@click.option(
    "--one-at-a-time", is_flag=True, help="Hold one competitor in memory at a time; they do not take turns."
)
@source_flags
@trust_flag
@click.option("--page", type=click.Path(path_type=Path), metavar="FILE", help="Write an HTML page too.")
@click.pass_obj
def command(
    output: Output,
    /,
    sources: tuple[str, ...],
    recipes: tuple[str, ...],
    overrides: tuple[str, ...],
    one_at_a_time: bool,
    page: Path | None,
    **settings: Any,
) -> int:
    """Measure artifacts, and checkpoints in PyTorch, against the first of them.

    The first is the yardstick: a source, or the first recipe. Each runs in a process of its own; they
    paint the same picture in turn. Shown are the median time of a picture with its spread, load time and
    first picture, peak memory (and the GPU's), size, the arithmetic that was really used, and how far
    each picture is from the first one's.

    A model that wants a picture (to start from, to repaint, to follow, to take after) is given the same as
    all others: the one that a flag names, else the drawing that `verify` gives it. What is laid over a source
    (--lora, --controlnet, --ip-adapter, --task …) is laid over every checkpoint named, and over no recipe's.
    """
    from exporter import bench
    from exporter.bench.page import check_place

    if overrides and not recipes:
        raise UsageError("--set changes a recipe, and none is named.", hint="Add --recipe NAME.")
    if page is not None:
        check_place(page)
    intake = {name: value for name, value in intake_of(settings).items() if value}
    checkpoints = [source for source in sources if not bench.is_made(source)]
    if intake and not checkpoints:
        raise UsageError(
            "What is laid over a checkpoint goes with none of these sources.",
            hint="Name the checkpoint too, or leave the flag out: an artifact has it already.",
        )
    entrants = [bench.Entrant(each, intake=intake if each in checkpoints else {}) for each in sources]
    with output.progress() as progress:
        named = _named(recipes, overrides, progress)
        result = bench.run([*entrants, *named], interleave=not one_at_a_time, progress=progress, **settings)
    if page is not None:
        from exporter.bench.page import write_page

        write_page(result, page)
    output.result(
        result.as_dict(),
        human=lambda console: _show(console, result, page),
        quiet="\n".join(f"{row.median:.4f}" for row in result.rows),
    )
    return result.exit_code


def name_of(row: Row) -> str:
    """A competitor's name, and what kind of artifact it is: `my-ov (1x512x512, compiled)`."""
    kinds = [row.static or "", "compiled" if row.compiled else ""]
    told = ", ".join(kind for kind in kinds if kind)
    return f"{row.name} ({told})" if told else row.name


def _named(names: tuple[str, ...], overrides: tuple[str, ...], progress: Progress) -> list[Entrant]:
    from exporter import recipes

    found: list[Entrant] = []
    for name in names:
        recipe = recipes.read(recipes.find(name), overrides)
        found += recipes.entrants(recipes.cells(recipe), progress=progress, keep_going=True)
    return found


def _show(console: Console, result: BenchResult, page: Path | None) -> None:
    from exporter.bench.given import told
    from exporter.bench.page import decibels, seconds

    rows = []
    for row in result.rows:
        fast, slow = row.spread
        memory = bytes_text(row.peak_memory) if row.peak_memory else "–"
        if row.device_memory:
            memory += f" + {bytes_text(row.device_memory)}"
        hint = f" (hint {row.precision_hint})" if row.precision_hint else ""
        rows.append(
            (
                name_of(row),
                f"{row.arithmetic}{hint}",
                seconds(row.median),
                f"{seconds(fast)}–{seconds(slow)}" if row.seconds else "–",
                "" if row.speedup is None else f"{row.speedup:.2f}×",
                seconds(row.first),
                seconds_text(row.load) if row.error is None else "",
                memory,
                bytes_text(row.disk) if row.disk else "–",
                decibels(row.psnr),
            )
        )
    times = ("a picture>", "spread>", "speed>", "first>", "load>")
    heads = ("source", "arithmetic", *times, "memory>", "disk>", "PSNR>")
    console.print(table(heads, rows))
    s = result.settings
    tokens = f", {s.tokens} tokens of T5" if s.tokens is not None else ""
    console.print(
        f"“{s.prompt}”, {s.steps} steps{tokens}, {s.runs} picture{'s' if s.runs > 1 else ''} each",
        soft_wrap=True,
    )
    if result.given:
        console.print(f"given: {told(result.given)}", soft_wrap=True)
    for row in result.rows:
        for note in row.notes:
            console.print(f"{row.name}: {note}", soft_wrap=True)
        if row.error is not None:
            console.print(f"{row.name}: {row.error.message}", soft_wrap=True)
            if row.error.hint:
                console.print(f"  {row.error.hint}", soft_wrap=True)
    if result.nothing_to_compare_with:
        console.print(
            f"Nothing is compared: {result.rows[0].name} comes first and took no part.", soft_wrap=True
        )
    if page is not None:
        console.print(f"page: {page}", soft_wrap=True)
