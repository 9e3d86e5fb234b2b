"""`exporter plan-devices`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from exporter.cli._group import Command
from exporter.cli._output import Output
from exporter.cli._show import bytes_text, table

if TYPE_CHECKING:
    from rich.console import Console

    from exporter.devices import DevicePlan, PlacedPart

TOO_SMALL = 6


@click.command(
    "plan-devices",
    cls=Command,
    examples=(
        (
            "Will it fit two GPUs of 8 GB? Of a repository only headers are fetched",
            "exporter plan-devices org/name --max-memory 0=8GB,1=8GB,cpu=16GB --dtype float16",
        ),
        (
            "Which block of the UNet goes where",
            "exporter plan-devices ./my-model --max-memory 0=2GB,1=2GB --split unet",
        ),
        ("An artifact, for a script", "exporter plan-devices my-model-onnx --max-memory 0=4GB --json"),
    ),
)
@click.argument("source", metavar="SOURCE|ARTIFACT")
@click.option(
    "--max-memory", required=True, metavar="DEVICE=SIZE,…",
    help="What each device may hold: numbers are GPUs, `cpu` is main memory, as in 0=8GB,1=8GB,cpu=16GB.",
)  # fmt: skip
@click.option(
    "--dtype", default="float32", show_default=True, metavar="DTYPE",
    help="Loaded in (torch_dtype): float32, float16 or bfloat16.",
)  # fmt: skip
@click.option(
    "--split", multiple=True, metavar="NAME",
    help="Let this part's blocks go to several devices; repeatable.",
)  # fmt: skip
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a Hub repository.")
@click.option("--variant", metavar="NAME", help="Weight variant of the checkpoint, such as fp16.")
@click.pass_obj
def command(
    output: Output,
    /,
    source: str,
    max_memory: str,
    dtype: str,
    split: tuple[str, ...],
    revision: str | None,
    variant: str | None,
) -> int:
    """Say which part of a pipeline goes on which device, before anybody downloads it.

    Whole parts are placed as diffusers' device_map="balanced" does it, the blocks of a part given with
    --split as accelerate does it (device_map="auto"). Only weights are counted. When they do not fit, the
    exit code is 6, and what would fit is listed.
    """
    from exporter.devices import parse_budgets, plan_devices

    plan = plan_devices(
        source, parse_budgets(max_memory), dtype=dtype, split=split, revision=revision, variant=variant
    )
    output.result(
        plan,
        human=lambda console: _show(console, plan),
        quiet="\n".join(f"{part.name} {part.device or 'nowhere'}" for part in plan.components),
    )
    if output.quiet:
        for problem in plan.problems:
            output.warn(problem)
    return 0 if plan.fits else TOO_SMALL


def _show(console: Console, plan: DevicePlan) -> None:
    console.print(f"{plan.source}: {plan.pipeline_class}, loaded in {plan.dtype}", soft_wrap=True)
    rows = [
        (
            part.name,
            part.class_name,
            f"{part.parameters:,}",
            ", ".join(part.stored),
            bytes_text(part.stored_bytes),
            bytes_text(part.bytes),
            part.device or "nowhere",
        )
        for part in plan.components
    ]
    heads = ("component", "class", "parameters>", "stored", "on disk>", "in memory>", "device")
    console.print(table(heads, rows))
    for part in plan.components:
        _show_blocks(console, part)
    used = [
        (device, bytes_text(taken), bytes_text(plan.max_memory.get(device)))
        for device, taken in plan.used.items()
    ]
    console.print(table(("device", "weights>", "allowed>"), used))
    for note in plan.notes:
        console.print(f"note: {note}", soft_wrap=True)
    console.print("It fits." if plan.fits else "It does not fit.")
    for problem in plan.problems:
        console.print(f"problem: {problem}", soft_wrap=True)
    for remedy in plan.remedies:
        console.print(f"try: {remedy}", soft_wrap=True)


def _show_blocks(console: Console, part: PlacedPart) -> None:
    if part.blocks:
        console.print(f"{part.name}")
    for path, device in part.blocks.items():
        console.print(f"  {path or '(all of it)'} → {device}", soft_wrap=True)
