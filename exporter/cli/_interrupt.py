"""Ctrl-C that cannot get lost.

Libraries that catch everything (a bare `except:`, a callback from C) swallow a `KeyboardInterrupt` that
happens to be raised inside them, and the work goes on. So the request is remembered, and raised again
at the next word of progress.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

from exporter.cli._progress import ShownProgress


class Interruptible:
    """A shown progress that raises `KeyboardInterrupt` when one was asked for and has got lost."""

    def __init__(self, shown: ShownProgress) -> None:
        self.shown = shown
        self._asked = False
        self._previous: Any = None

    def start(self, label: str, total: float | None = None) -> None:
        self._check()
        self.shown.start(label, total)

    def update(self, completed: float, detail: str | None = None) -> None:
        self._check()
        self.shown.update(completed, detail)

    def done(self) -> None:
        self._check()
        self.shown.done()

    def __enter__(self) -> Self:
        # Only Python's own handler is replaced: a parent that ignores the signal is left alone.
        ours = threading.current_thread() is threading.main_thread()
        if ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._previous = signal.signal(signal.SIGINT, self._ask)
        self.shown.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
        self.shown.__exit__(*error)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        raise KeyboardInterrupt

    def _check(self) -> None:
        if self._asked:
            raise KeyboardInterrupt
