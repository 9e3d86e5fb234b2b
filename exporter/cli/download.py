"""`exporter download`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from exporter.cli._group import Command
from exporter.cli._output import Output
from exporter.cli._show import bytes_text, table

if TYPE_CHECKING:
    from rich.console import Console

    from exporter.checkpoints.hub import Snapshot


@click.command(
    "download",
    cls=Command,
    examples=(
        (
            "What a pipeline needs, and nothing twice",
            "exporter download stable-diffusion-v1-5/stable-diffusion-v1-5",
        ),
        (
            "Its half-precision weights, at one commit",
            "exporter download org/name --variant fp16 --revision 451f4fe",
        ),
    ),
)
@click.argument("repo", metavar="ORG/NAME")
@click.option("--revision", metavar="REV", help="Branch, tag or commit.")
@click.option("--variant", metavar="NAME", help="Weight variant of the checkpoint, such as fp16.")
@click.pass_obj
def command(output: Output, /, repo: str, revision: str | None, variant: str | None) -> int:
    """Fetch a checkpoint or an artifact from the Hub into its cache.

    Only the files the pipeline needs are fetched: safetensors, in one precision. What is there already
    is kept, an interrupted download goes on where it stopped, and every fetched file is checked against
    the hash the Hub names. With HF_HUB_OFFLINE=1 only the cache is asked, and what it lacks is named.
    """
    from exporter.checkpoints.hub import download, is_hub_id

    if not is_hub_id(repo):
        raise click.BadParameter(f"{repo!r} is no org/name.", param_hint="ORG/NAME")
    with output.progress() as progress:
        snapshot = download(repo, revision=revision, variant=variant, progress=progress)
    output.result(
        snapshot.as_dict(), human=lambda console: _show(console, snapshot), quiet=str(snapshot.root)
    )
    return 0


def _show(console: Console, snapshot: Snapshot) -> None:
    console.print(table(("file", "bytes>"), [(file.path, bytes_text(file.size)) for file in snapshot.files]))
    console.print(f"{snapshot.repo}, {snapshot.kind}, commit {snapshot.revision}", soft_wrap=True)
    console.print(
        f"{bytes_text(snapshot.bytes)} in all, {bytes_text(snapshot.fetched)} of it fetched now; "
        f"{bytes_text(snapshot.left_out)} of the repository are not needed",
        soft_wrap=True,
    )
    console.print(str(snapshot.root), soft_wrap=True)
