"""Pages of a mapped file are handed back and can still be read."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from exporter.targets.openvino.mapped import let_go


def resident_files() -> int:
    """Bytes of file pages in this process."""
    found = re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_pages_are_handed_back_and_stay_readable(tmp_path: Path) -> None:
    size = 64 << 20
    real, folder, other = tmp_path / "real.bin", tmp_path / "scratch", tmp_path / "other.bin"
    folder.mkdir()
    for path in (real, other):
        np.arange(size // 4, dtype=np.uint32).tofile(path)
    (folder / "link.bin").symlink_to(real)
    mapped = np.memmap(folder / "link.bin", np.uint32, mode="r")
    untouched = np.memmap(other, np.uint32, mode="r")
    total = int(mapped.sum()) + int(untouched.sum())
    before = resident_files()
    assert let_go(folder) == size
    assert before - resident_files() > 0.9 * size
    assert before - resident_files() < 1.1 * size, "only files of that folder"
    assert int(mapped.sum()) + int(untouched.sum()) == total


def test_a_mapping_that_may_be_written_is_left_alone(tmp_path: Path) -> None:
    np.zeros(1 << 20, np.uint8).tofile(tmp_path / "own.bin")
    private = np.memmap(tmp_path / "own.bin", np.uint8, mode="c")
    private[:] = 7
    assert let_go(tmp_path) == 0
    assert int(private.min()) == 7
