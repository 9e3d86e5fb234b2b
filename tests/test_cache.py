"""The cache folder: bounded, atomic, and never removing what is not its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exporter import cache
from exporter.cache import PARITY, SKELETONS
from exporter.errors import UsageError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EXPORTER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(cache.LIMIT_VARIABLE, raising=False)
    return tmp_path / "cache"


def age(key: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(SKELETONS.folder / f"{key}.skeleton", (then, then))


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> None:
    assert cache.root() == folder
    monkeypatch.delenv("EXPORTER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.root() == tmp_path / "xdg/exporter"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.root() == tmp_path / "home/.cache/exporter"


def test_the_least_recently_used_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.LIMIT_VARIABLE, "3kB")
    for number, key in enumerate("abc"):
        cache.write(SKELETONS, key, bytes(1000))
        age(key, 100 - number)
    assert cache.read(SKELETONS, "a") == bytes(1000)  # now the most recently used
    cache.write(SKELETONS, "d", bytes(1000))
    assert [key for key in "abcd" if cache.read(SKELETONS, key) is not None] == ["a", "c", "d"]
    cache.write(SKELETONS, "e", bytes(3001))
    assert cache.read(SKELETONS, "e") is None, "larger than the whole cache"
    assert cache.info([SKELETONS])[0].bytes == 3000


@pytest.mark.parametrize(
    ("given", "size"),
    [("", 2 * 10**9), ("0", 0), ("1234", 1234), ("500MB", 5 * 10**8), ("1.5 gb", 15 * 10**8)],
)
def test_the_limit(monkeypatch: pytest.MonkeyPatch, given: str, size: int) -> None:
    monkeypatch.setenv(cache.LIMIT_VARIABLE, given)
    assert cache.limit() == size
    assert cache.enabled() == (size > 0)


@pytest.mark.parametrize("given", ["plenty", "-1", "2XB", "nan"])
def test_a_limit_that_is_no_size(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(cache.LIMIT_VARIABLE, given)
    with pytest.raises(UsageError, match=cache.LIMIT_VARIABLE):
        cache.limit()


def test_clear_leaves_what_is_not_of_the_cache(folder: Path) -> None:
    cache.write(SKELETONS, "a", b"graph")
    PARITY.folder.mkdir(parents=True)
    (PARITY.folder / "x.safetensors").write_bytes(b"1234")
    (PARITY.folder / ".x.safetensors.77.tmp").write_bytes(b"12")  # a write that was killed
    (PARITY.folder / "letter.txt").write_text("dear diary")
    (folder / "letter.txt").write_text("dear diary")
    assert [(room.name, room.files, room.bytes) for room in cache.info()] == [
        ("skeletons", 1, 5),
        ("parity", 2, 6),
        ("recordings", 0, 0),
    ]
    assert [(room.files, room.bytes) for room in cache.clear([PARITY])] == [(2, 6)]
    assert cache.read(SKELETONS, "a") == b"graph"
    assert [room.bytes for room in cache.clear()] == [5, 0, 0]
    assert [room.files for room in cache.info()] == [0, 0, 0]
    assert (folder / "letter.txt").exists() and (PARITY.folder / "letter.txt").exists()


def test_a_folder_that_cannot_be_written_is_no_error(folder: Path) -> None:
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("a file where the folder should be")
    cache.write(SKELETONS, "a", b"graph")
    assert cache.read(SKELETONS, "a") is None
    assert [room.files for room in cache.info()] == [0, 0, 0]


def test_writers_at_once_leave_one_whole_file(folder: Path) -> None:
    """Each process writes its own byte over and over; a reader never sees a mixture."""
    program = (
        "import sys; from exporter import cache\n"
        "for _ in range(40): cache.write(cache.SKELETONS, 'k', sys.argv[1].encode() * 200_000)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, letter]) for letter in "xy"]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        data = cache.read(SKELETONS, "k")
        if data is not None:
            assert len(data) == 200_000 and len(set(data)) == 1
            seen += 1
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen
    assert [p.name for p in SKELETONS.files()] == ["k.skeleton"]
