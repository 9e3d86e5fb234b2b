"""What several workers are doing at once: a table that moves on a terminal, lines in a log, or nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from exporter.cli._progress import ShownProgress, SilentProgress
from exporter.cli._show import seconds_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from exporter.batch import Row

PLANNING = "plan"


class Board(ShownProgress, Protocol):
    """An `exporter.batch.Watcher`, and the progress of the planning before."""

    def started(self, row: Row) -> None: ...

    def working(self, row: Row, what: str) -> None: ...

    def again(self, row: Row, why: str) -> None: ...

    def ended(self, row: Row) -> None: ...


def board(stream: TextIO, *, silent: bool) -> Board:
    """The one that fits where it is shown."""
    if silent:
        return _SilentBoard()
    return _LiveBoard(stream) if stream.isatty() else _LineBoard(stream)


def outcome(row: Row) -> str:
    """`PASS in 12.3 s`, `complete from an earlier run: PASS`, `stopped: …`; of a part `made in 12.3 s`."""
    verdict = row.verdict or "not verified"
    if row.state == "uncollected" and row.error is not None:
        return f"{verdict}, but n{row.error.message[1:]}"
    if row.error is not None:
        return f"stopped: {row.error.message}"
    if row.part is not None:
        return f"made in {seconds_text(row.seconds)}"
    if row.state == "kept":
        return f"complete from an earlier run: {verdict}"
    return f"{verdict} in {seconds_text(row.seconds)}"


class _SilentBoard(SilentProgress):
    def started(self, row: Row) -> None:
        pass

    def working(self, row: Row, what: str) -> None:
        pass

    def again(self, row: Row, why: str) -> None:
        pass

    def ended(self, row: Row) -> None:
        pass


class _LineBoard(_SilentBoard):
    """A line when a cell begins and one when it ends."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._began = time.monotonic()

    def start(self, label: str, total: float | None = None) -> None:
        self._line(label)

    def started(self, row: Row) -> None:
        self._line(f"{row.id}: begun")

    def again(self, row: Row, why: str) -> None:
        self._line(f"{row.id}: the worker was lost ({why}); it is begun again")

    def ended(self, row: Row) -> None:
        self._line(f"{row.id}: {outcome(row)}")

    def _line(self, text: str) -> None:
        self._stream.write(f"[{time.monotonic() - self._began:7.1f} s] {text}\n")
        self._stream.flush()


class _LiveBoard(_SilentBoard):
    """One row a running worker; what has ended scrolls by above."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._live = Live(
            console=self._console, get_renderable=self._table, refresh_per_second=4,
            redirect_stdout=False, redirect_stderr=False, transient=True,
        )  # fmt: skip
        self._began = time.monotonic()
        self._running: dict[str, tuple[float, str]] = {}

    def start(self, label: str, total: float | None = None) -> None:
        self._running[PLANNING] = (self._began, label)

    def done(self) -> None:
        self._running.pop(PLANNING, None)

    def started(self, row: Row) -> None:
        self._running[row.id] = (time.monotonic(), "starting")

    def working(self, row: Row, what: str) -> None:
        began = self._running.get(row.id, (time.monotonic(), ""))[0]
        self._running[row.id] = (began, what)

    def again(self, row: Row, why: str) -> None:
        self._running.pop(row.id, None)
        self._console.print(f"↻ {row.id}: the worker was lost ({why}); it is begun again", soft_wrap=True)

    def ended(self, row: Row) -> None:
        self._running.pop(row.id, None)
        mark = "✗" if row.exit_code else "✓"
        self._console.print(f"{mark} {row.id}: {outcome(row)}", soft_wrap=True)

    def _table(self) -> RenderableType:
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for name, (began, what) in list(self._running.items()):
            seconds = seconds_text(time.monotonic() - began)
            table.add_row(Spinner("dots"), Text(name), Text(seconds, style="dim"), Text(what, style="dim"))
        return table

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()
