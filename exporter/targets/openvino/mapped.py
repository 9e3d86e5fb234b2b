"""Hands back pages of files that OpenVINO has mapped and that were only read."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path


def let_go(folder: Path) -> int:
    """Drop the pages of every read-only mapping of a file in `folder` from this process.

    They stay readable: the kernel takes them from its cache, or the disk, again. Links are followed, since a
    graph's data file may be the checkpoint itself. Nothing happens on systems without /proc.

    Returns:
        The number of bytes of those mappings.
    """
    if not sys.platform.startswith("linux") or not hasattr(mmap, "MADV_DONTNEED"):
        return 0
    files = set()
    for path in folder.rglob("*"):
        if path.is_file():
            status = path.stat()
            files.add((status.st_dev, status.st_ino))
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    dropped = 0
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        span, rights, _, device, inode, *name = line.split(maxsplit=5)
        if "w" in rights or not rights.startswith("r--") or not name or inode == "0":
            continue
        major, minor = (int(part, 16) for part in device.split(":"))
        if not any(int(inode) == node and _same_device(dev, major, minor) for dev, node in files):
            continue
        first, last = (int(part, 16) for part in span.split("-"))
        if madvise(first, last - first, mmap.MADV_DONTNEED) == 0:
            dropped += last - first
    return dropped


def _same_device(device: int, major: int, minor: int) -> bool:
    import os

    return (os.major(device), os.minor(device)) == (major, minor)
