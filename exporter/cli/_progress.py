"""How progress is shown: a bar on a terminal, one line a task in a log, or nothing."""

from __future__ import annotations

import time
from typing import Any, Protocol, Self, TextIO

from exporter.progress import NullProgress, Progress


class ShownProgress(Progress, Protocol):
    """A `Progress` that is also a context manager: what it draws is gone or finished at the end."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


class SilentProgress(NullProgress):
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class LineProgress:
    """One line when a task begins, with the seconds since the start; for logs and pipes.

    Args:
        stream: Where the lines go.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._began = time.monotonic()

    def start(self, label: str, total: float | None = None) -> None:
        seconds = time.monotonic() - self._began
        self._stream.write(f"[{seconds:7.1f} s] {label}\n")
        self._stream.flush()

    def update(self, completed: float, detail: str | None = None) -> None:
        pass

    def done(self) -> None:
        pass

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        pass


class BarProgress:
    """A bar per task: the running one moves, finished ones stay with their time.

    Args:
        stream: The terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TaskID,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
        )
        from rich.table import Column

        self._bars = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}", markup=False, style="dim", table_column=Column(no_wrap=True)),
            console=Console(file=stream, highlight=False),
            redirect_stdout=False,
        )
        self._task: TaskID | None = None

    def start(self, label: str, total: float | None = None) -> None:
        self.done()
        self._task = self._bars.add_task(label, total=total, detail="")

    def update(self, completed: float, detail: str | None = None) -> None:
        if self._task is not None:
            fields: dict[str, Any] = {} if detail is None else {"detail": detail}
            self._bars.update(self._task, completed=completed, **fields)

    def done(self) -> None:
        if self._task is not None:
            task = self._bars.tasks[self._bars.task_ids.index(self._task)]
            total = task.total or 1
            self._bars.update(self._task, total=total, completed=total, detail="")
            self._task = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.done()
        self._bars.stop()
