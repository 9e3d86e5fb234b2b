"""Hashing a file behind whoever writes it."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.background import aside
from exporter.checkpoints import resolve
from exporter.hashing import Follower, Once, sha256_of


@given(st.lists(st.tuples(st.binary(max_size=600_000), st.booleans()), max_size=6))
@settings(max_examples=30, deadline=None)
def test_the_digest_is_that_of_the_whole_file(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[bytes, bool]]
) -> None:
    path = tmp_path_factory.mktemp("followed") / "file"
    with Follower(path) as follower, path.open("wb", buffering=0) as handle:
        for piece, told in pieces:
            handle.write(piece)
            if told:
                follower.reached(handle.tell())
    assert follower.digest.result(60) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_bytes_that_may_still_change_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with Follower(path) as follower, path.open("wb", buffering=0) as handle:
        handle.write(b"first")
        follower.reached(0)
        handle.seek(0)
        handle.write(b"other")
    assert follower.digest.result(60) == hashlib.sha256(b"other").hexdigest()


def test_a_file_that_failed_has_no_digest(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(RuntimeError), Follower(path) as follower:
        path.write_bytes(b"half")
        follower.reached(4)
        raise RuntimeError("disk full")
    with pytest.raises(InterruptedError):
        follower.digest.result(60)


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with Follower(tmp_path / "never") as follower:
        pass
    with pytest.raises(FileNotFoundError):
        follower.digest.result(60)


def test_what_is_taken_once_keeps_nobody_else_waiting() -> None:
    """`functools.cached_property` does, up to Python 3.11: one lock for all instances of a class."""
    slow, quick, begun = Once(), Once(), threading.Event()

    def read(stop: threading.Event) -> int:
        begun.set()
        assert stop.wait(60)
        return 1

    waiting = aside(lambda: slow.take(read))
    assert begun.wait(60)
    assert quick.take(lambda stop: 2) == 2 and not waiting.done()
    slow.give_up()
    assert waiting.result(60) == 1
    assert slow.take(lambda stop: 3) == 1, "it is taken once"


def test_a_reading_that_was_given_up_can_be_done_again(tmp_path: Path) -> None:
    path, once, begun = tmp_path / "file", Once(), threading.Event()
    with path.open("wb") as handle:
        handle.truncate(1 << 40)  # a hole that nobody reads to its end

    def read(stop: threading.Event) -> str:
        begun.set()
        return sha256_of(path, stop)

    waiting = aside(lambda: once.take(read))
    assert begun.wait(60)
    once.give_up()
    with pytest.raises(InterruptedError):
        waiting.result(60)
    path.write_bytes(b"short")
    assert once.take(read) == hashlib.sha256(b"short").hexdigest()


def test_every_checkpoint_is_hashed_by_itself(tiny: Path) -> None:
    first, second = resolve(str(tiny)), resolve(str(tiny))
    held = threading.Event()
    waiting = aside(lambda: first._hashed.take(lambda stop: held.wait(60)))
    assert second.files == resolve(str(tiny)).files and not waiting.done()
    held.set()
    assert waiting.result(60)
