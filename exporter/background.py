"""Work done aside, in a thread that nobody waits for when the program ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")
ASIDE = "exporter-aside"
"""Name of the threads."""


def aside(work: Callable[[], Result]) -> Future[Result]:
    """Start `work` in a daemon thread. For reading only: it is cut off wherever it stands at exit."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=ASIDE, daemon=True).start()
    return future


@contextmanager
def on_failure(give_up: Callable[[], None]) -> Iterator[None]:
    """Call `give_up` where the block raises: what it began aside is not worth finishing."""
    try:
        yield
    except BaseException:
        give_up()
        raise
