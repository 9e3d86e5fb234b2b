"""Ctrl-C that a library swallowed is raised again at the next word of progress."""

from __future__ import annotations

import contextlib
import signal

import pytest

from exporter.cli._interrupt import Interruptible
from exporter.cli._progress import SilentProgress


@pytest.fixture(autouse=True)
def _pythons_own_handler():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def swallowed() -> None:
    """The handler is called as Python calls it. A real signal kills a process in which another test had a
    native library lay a signal stack that is too small; the commands' own test sends real ones to children.
    """
    handler = signal.getsignal(signal.SIGINT)
    assert callable(handler)
    with contextlib.suppress(BaseException):  # as a bare `except:` in a library does
        handler(signal.SIGINT, None)


@pytest.mark.parametrize("word", ["start", "update", "done"])
def test_a_swallowed_interrupt_is_raised_again(word: str) -> None:
    with pytest.raises(KeyboardInterrupt), Interruptible(SilentProgress()) as progress:
        swallowed()
        {"start": lambda: progress.start("x"), "update": lambda: progress.update(1), "done": progress.done}[
            word
        ]()


def test_without_an_interrupt_nothing_is_raised() -> None:
    with Interruptible(SilentProgress()) as progress:
        progress.start("x", 1)
        progress.update(1)
        progress.done()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_parent_that_ignores_the_signal_is_left_alone() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interruptible(SilentProgress()) as progress:
        signal.raise_signal(signal.SIGINT)
        progress.update(1)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
