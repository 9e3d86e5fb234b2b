"""sha256 of files: one at a time, or as many at once as there are cores."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path

HASH_CHUNK = 1 << 18
"""Bytes read at a time, always into the same buffer: it stays in the processor's cache."""


def sha256_of(path: Path, stop: threading.Event | None = None) -> str:
    """sha256 hex of a file's bytes.

    Args:
        stop: Once it is set, reading ends and `InterruptedError` is raised.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(HASH_CHUNK))
    with path.open("rb", buffering=0) as handle:
        while count := handle.readinto(buffer):
            if stop is not None and stop.is_set():
                raise InterruptedError(f"{path} was not read to its end")
            digest.update(buffer[:count])
    return digest.hexdigest()


def sha256_of_all(paths: Sequence[Path]) -> list[str]:
    """sha256 hex of every file, as many at once as there are cores: hashing leaves the interpreter free.

    The largest goes first, because no more than one core can work on one file.
    """
    from concurrent.futures import ThreadPoolExecutor

    stop = threading.Event()
    order = sorted(range(len(paths)), key=lambda i: -paths[i].stat().st_size)
    with ThreadPoolExecutor(max_workers=_cores()) as pool:
        try:
            work = {i: pool.submit(sha256_of, paths[i], stop) for i in order}
            return [work[i].result() for i in range(len(paths))]
        except BaseException:  # Ctrl-C does not wait for gigabytes
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
