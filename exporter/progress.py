"""How long work reports what it is doing; the bar itself is drawn by the command line."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the progress of one job made of consecutive tasks."""

    def start(self, label: str, total: float | None = None) -> None:
        """A new task begins (the previous one is done). `total` is in the task's own unit, or unknown."""

    def update(self, completed: float, detail: str | None = None) -> None:
        """`completed` of `total` is done; `detail` says what is happening now."""

    def done(self) -> None:
        """The current task is finished."""


class NullProgress:
    """Swallows everything: the default of the Python API."""

    def start(self, label: str, total: float | None = None) -> None:
        pass

    def update(self, completed: float, detail: str | None = None) -> None:
        pass

    def done(self) -> None:
        pass


class Prefixed:
    """A progress whose tasks say which part of a larger job they belong to."""

    def __init__(self, progress: Progress, prefix: str) -> None:
        self._progress, self._prefix = progress, prefix

    def start(self, label: str, total: float | None = None) -> None:
        self._progress.start(f"{self._prefix}: {label}", total)

    def update(self, completed: float, detail: str | None = None) -> None:
        self._progress.update(completed, detail)

    def done(self) -> None:
        self._progress.done()
