"""`exporter cache`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from exporter.cli._group import Command
from exporter.cli._output import Output
from exporter.cli._show import bytes_text, table

if TYPE_CHECKING:
    from rich.console import Console

    from exporter.cache import Contents


@click.command(
    "cache",
    cls=Command,
    examples=(
        ("What is kept, where, and how large it is", "exporter cache info"),
        ("Forget it all; the next runs are slower once", "exporter cache clear"),
        ("Forget the reference outputs of verifications only", "exporter cache clear --room parity"),
    ),
)
@click.argument("action", type=click.Choice(["info", "clear"]))
@click.option(
    "--room", "names", multiple=True, type=click.Choice(["skeletons", "parity", "recordings"]),
    help="Only this part of the cache; repeatable.",
)  # fmt: skip
@click.pass_obj
def command(output: Output, /, action: str, names: tuple[str, ...]) -> None:
    """Show (info) or remove (clear) what earlier runs keep to be faster. Nothing in it is needed.

    skeletons: graphs without weights. Another checkpoint of the same architecture, converted with the same
    options, only has its weights copied. Kept below 2 GB by dropping the least recently used ones;
    EXPORTER_CACHE_LIMIT (500MB, 2GB, …) changes that, and 0 keeps none.

    parity: what the PyTorch reference computed for verifications.

    recordings: the calls of pipelines that no module is written for, as they were observed.

    The folder is $EXPORTER_CACHE, or exporter in $XDG_CACHE_HOME or ~/.cache.
    """
    from exporter import cache

    rooms = [room for room in cache.ROOMS if not names or room.name in names]
    found = cache.clear(rooms) if action == "clear" else cache.info(rooms)
    output.result(
        {"action": action, "folder": cache.root(), "rooms": found},
        human=lambda console: _show(console, action, found),
        quiet=str(sum(room.bytes for room in found)),
    )


def _show(console: Console, action: str, found: list[Contents]) -> None:
    rows = [
        (
            room.name,
            f"{room.files:,}",
            bytes_text(room.bytes),
            "" if room.limit is None else bytes_text(room.limit),
            room.holds,
        )
        for room in found
    ]
    console.print(table(("", "files>", "removed>" if action == "clear" else "size>", "limit>", ""), rows))
    for room in found:
        console.print(f"{room.name}: {room.folder}", soft_wrap=True)
