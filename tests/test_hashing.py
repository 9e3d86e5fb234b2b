"""Hashing a file behind whoever writes it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.hashing import Follower


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
