"""sha256 of files: one at a time, or as many at once as there are cores."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

Result = TypeVar("Result")
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


class Once:
    """What reading many bytes gives: taken by whichever thread asks first, kept, and given up on demand.

    Not `functools.cached_property`: up to Python 3.11 that has one lock for all instances of a class, so that
    a large source that is hashed aside would keep every other one waiting.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._found: Any = None

    def take(self, read: Callable[[threading.Event], Result]) -> Result:
        """What `read` gives; its event is set once the result is no longer wanted."""
        with self._lock:
            if self._found is None:
                self._found = read(self._stop)
            found: Result = self._found
            return found

    def give_up(self) -> None:
        """End the reading that goes on now, if any, with `InterruptedError`; later ones are not touched."""
        stop, self._stop = self._stop, threading.Event()
        stop.set()


class Follower:
    """sha256 of a file that is still being written, from its beginning to its end, close behind the writer.

    What was just written is read back from the system's cache of the file, so the digest is of what lies
    there. Use as a context manager around the writing; the digest is still being made when it is left.

    Attributes:
        digest: sha256 hex, once the file is complete; `InterruptedError` when writing it failed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digest: Future[str] = Future()
        self._size = 0
        self._complete = self._failed = False
        self._grown = threading.Condition()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._grown:
            self._failed, self._complete = kind is not None, True
            self._grown.notify()
        if self._failed:
            self._thread.join()

    def reached(self, size: int) -> None:
        """The file is `size` bytes long now, and these do not change any more."""
        with self._grown:
            self._size = size
            self._grown.notify()

    def _follow(self) -> None:
        try:
            self.digest.set_result(self._hashed())
        except BaseException as error:
            self.digest.set_exception(error)

    def _hashed(self) -> str:
        digest, done = hashlib.sha256(), 0
        buffer = memoryview(bytearray(HASH_CHUNK))
        handle: FileIO | None = None
        try:
            while True:
                with self._grown:
                    while self._size <= done and not self._complete:
                        self._grown.wait()
                    size, complete = self._size, self._complete
                    if self._failed:
                        raise InterruptedError(f"{self.path} was not written to its end")
                handle = handle or self.path.open("rb", buffering=0)
                while done < size or complete:
                    count = handle.readinto(buffer)
                    if not count:
                        break
                    digest.update(buffer[:count])
                    done += count
                if complete:
                    return digest.hexdigest()
        finally:
            if handle is not None:
                handle.close()


def _cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
