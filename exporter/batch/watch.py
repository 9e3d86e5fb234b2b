"""Who is told what the workers are doing; the command line draws it."""

from __future__ import annotations

from typing import Protocol

from exporter.batch.state import Row


class Watcher(Protocol):
    """Receives what happens to cells."""

    def started(self, row: Row) -> None:
        """A worker has taken it."""

    def working(self, row: Row, what: str) -> None:
        """The worker is at another task."""

    def again(self, row: Row, why: str) -> None:
        """Its worker was lost; it will be begun again."""

    def ended(self, row: Row) -> None:
        """It is done, kept, or has failed."""


class NoWatcher:
    """Swallows everything: the default of the Python API."""

    def started(self, row: Row) -> None:
        pass

    def working(self, row: Row, what: str) -> None:
        pass

    def again(self, row: Row, why: str) -> None:
        pass

    def ended(self, row: Row) -> None:
        pass
