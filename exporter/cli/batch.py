"""`exporter batch`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli._board import board
from exporter.cli._group import Command
from exporter.cli._interrupt import Interruptible
from exporter.cli._output import Output
from exporter.cli._show import bytes_text, seconds_text, table
from exporter.cli._types import Size

if TYPE_CHECKING:
    from rich.console import Console

    from exporter.batch import Summary


@click.command(
    "batch",
    cls=Command,
    examples=(
        ("Every model of a matrix with every recipe of it", "exporter batch matrix.yaml -o nightly"),
        ("What it would take; nothing is written", "exporter batch matrix.yaml -o nightly --dry-run"),
        ("The example on the shelf", "exporter batch embedded -o embedded-batch"),
        ("Four at once, in 32 GB", "exporter batch matrix.yaml -o nightly --jobs 4 --memory 32GB"),
        ("On a Ray cluster", "exporter batch matrix.yaml -o /shared/nightly --ray 10.0.0.1:6379"),
        (
            "On one without shared storage: every artifact goes to a bucket",
            "exporter batch matrix.yaml -o /scratch/nightly --ray auto --collect s3://models/nightly",
        ),
    ),
)
@click.argument("matrix", metavar="MATRIX")
@click.option(
    "-o", "--output", "folder", required=True, type=click.Path(path_type=Path), metavar="DIR",
    help="Folder of the artifacts, of batch.json and of index.html.",
)  # fmt: skip
@click.option(
    "--jobs", "slots", type=click.IntRange(min=1), metavar="N",
    help="Cells at once on this machine, where their memory allows it.  [default: half the cores]",
)  # fmt: skip
@click.option(
    "--memory", type=Size(), metavar="SIZE", help="What they may take together.  [default: what is free]"
)
@click.option(
    "--retries", type=click.IntRange(min=0), default=2, show_default=True,
    help="How often a cell is begun again whose worker was lost.",
)  # fmt: skip
@click.option(
    "--ray", metavar="ADDRESS",
    help="Work on this Ray cluster (HOST:PORT or `auto`); DIR must be a folder that every node sees, but for "
    "--collect.",
)  # fmt: skip
@click.option(
    "--collect", metavar="URL",
    help="Send every finished artifact to URL/<cell> (s3://, gs://, sftp://, file://, … by fsspec), and "
    "prove by its hashes that it is there.",
)  # fmt: skip
@click.option(
    "--keep/--no-keep", default=None,
    help="Whether an artifact stays in DIR when it is collected.  [default: it stays]",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print what every cell would take, and do nothing.")
@click.pass_obj
def command(
    output: Output,
    /,
    matrix: str,
    folder: Path,
    slots: int | None,
    memory: int | None,
    retries: int,
    ray: str | None,
    collect: str | None,
    keep: bool | None,
    dry_run: bool,
) -> int:
    """Convert many models with many recipes, and judge every artifact.

    MATRIX is a YAML file. A cell that fails does not keep the others from finishing; the exit code is the
    worst of them: 1, then 3, 2, 4, 6, 7, 5, 0. The same command takes up a run that was stopped, and does
    not do again what is complete.
    """
    from exporter import batch

    if dry_run:
        with output.progress() as progress:
            summary = batch.check(matrix, folder, progress, ray=ray, collect=collect, keep=keep)
    else:
        silent = output.quiet or (output.json and not output.stderr.isatty())
        watcher = board(output.stderr, silent=silent)
        with Interruptible(watcher) as progress:
            summary = batch.run(
                matrix, folder, slots=slots, memory=memory, retries=retries, ray=ray, collect=collect,
                keep=keep, progress=progress, watcher=watcher,
            )  # fmt: skip
    page = None if dry_run else folder / "index.html"
    output.result(
        {**summary.as_dict(), "page": page},
        human=lambda console: _show(console, summary, page),
        quiet="\n".join(row.verdict or row.state for row in summary.rows),
    )
    return summary.exit_code


def _show(console: Console, summary: Summary, page: Path | None) -> None:
    from exporter.batch.summary import verdict

    rows = [
        (
            row.id,
            row.target,
            verdict(row.verdict, row.state),
            bytes_text(row.bytes or row.disk),
            bytes_text(row.memory),
            seconds_text(row.seconds) if row.seconds else "–",
        )
        for row in summary.rows
    ]
    console.print(table(("cell", "target", "verdict", "size>", "memory>", "time>"), rows))
    if collected := [row.collected.rpartition("/")[0] for row in summary.rows if row.collected]:
        console.print(f"collected at {collected[0]}: {len(collected)} of {len(rows)}", soft_wrap=True)
    for row in summary.rows:
        if row.split:
            console.print(f"{row.id}: {row.split}", soft_wrap=True)
        if row.exit_code:
            console.print(f"{row.id}: {row.error.message if row.error else row.summary}", soft_wrap=True)
            if row.error and row.error.hint:
                console.print(f"  {row.error.hint}", soft_wrap=True)
    if page is not None:
        console.print(f"page: {page}", soft_wrap=True)
