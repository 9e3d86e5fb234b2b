"""The user's cache folder: what can be computed again, but should not have to be.

Rooms are folders of independent files, and any file may vanish at any time. This module knows how files are
kept, found, bounded and removed; what is in them is the business of whoever put them there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from exporter.errors import UsageError

LIMIT_VARIABLE = "EXPORTER_CACHE_LIMIT"
DEFAULT_LIMIT = 2 * 10**9
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
LOCK_SECONDS = 10.0

_switched_off: ContextVar[bool] = ContextVar("exporter_cache_off", default=False)


@dataclass(frozen=True)
class Room:
    """One kind of cached file.

    Attributes:
        name: Its folder below the root.
        suffix: Of its files; nothing else is ever removed.
        holds: In words.
        bounded: Whether the least recently used files go when the room is larger than the limit.
    """

    name: str
    suffix: str
    holds: str
    bounded: bool = False

    @property
    def folder(self) -> Path:
        return root() / self.name

    def files(self) -> list[Path]:
        """Every file of the room, those of interrupted writes included."""
        try:
            found = sorted(self.folder.iterdir())
        except OSError:
            return []
        return [
            p for p in found if p.name.endswith((self.suffix, f"{self.suffix}.tmp")) or _leftover(self, p)
        ]


SKELETONS = Room("skeletons", ".skeleton", "graphs without weights, one per architecture and options", True)
PARITY = Room("parity", ".safetensors", "reference outputs and pictures of verifications")
RECORDINGS = Room("recordings", ".json", "calls of pipelines that no module is written for", True)
ROOMS = (SKELETONS, PARITY, RECORDINGS)


@dataclass(frozen=True)
class Contents:
    """What a room holds now; `limit` is None where there is none."""

    name: str
    holds: str
    folder: Path
    files: int
    bytes: int
    limit: int | None


def root() -> Path:
    """`$EXPORTER_CACHE` or `$XDG_CACHE_HOME/exporter` or `~/.cache/exporter`."""
    chosen = os.environ.get("EXPORTER_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "exporter"


def limit() -> int:
    """Bytes that a bounded room may take: `$EXPORTER_CACHE_LIMIT` (`500MB`; 0 keeps nothing), or 2 GB.

    Raises:
        UsageError: The variable is no size.
    """
    given = os.environ.get(LIMIT_VARIABLE, "").strip()
    if not given:
        return DEFAULT_LIMIT
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)?", given, re.IGNORECASE)
    if match is None:
        raise UsageError(f"{LIMIT_VARIABLE} is {given!r}, which is no size.", hint="Try 500MB, 2GB, or 0.")
    return int(float(match[1]) * UNITS[(match[2] or "").upper()])


def enabled() -> bool:
    """Whether bounded rooms are read and written at all."""
    return not _switched_off.get() and limit() > 0


@contextmanager
def off(switch: bool = True) -> Iterator[None]:
    """Inside, bounded rooms are neither read nor written (unless `switch` is False)."""
    token = _switched_off.set(switch or _switched_off.get())
    try:
        yield
    finally:
        _switched_off.reset(token)


def read(room: Room, key: str) -> bytes | None:
    """The bytes kept under a key, which now count as just used; None if there are none."""
    path = room.folder / f"{key}{room.suffix}"
    try:
        data = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    return data


def write(room: Room, key: str, data: bytes) -> None:
    """Keep bytes under a key, then make room. A cache that cannot be written is no reason to stop."""
    if len(data) > limit():
        return
    path = room.folder / f"{key}{room.suffix}"
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        room.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(room.folder / ".lock", timeout=LOCK_SECONDS):
            try:
                with temporary.open("wb") as handle:
                    handle.write(data)
                    handle.flush()
                    os.fsync(handle.fileno())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            if room.bounded:
                _prune(room, keep=path)
    except (OSError, NotImplementedError, Timeout):
        return


def discard(room: Room, key: str) -> None:
    """Forget a key."""
    with suppress(OSError):
        (room.folder / f"{key}{room.suffix}").unlink()


def info(rooms: Sequence[Room] = ROOMS) -> list[Contents]:
    """What is in each of the rooms."""
    found = []
    for room in rooms:
        sizes = [stat.st_size for stat in map(_stat, room.files()) if stat is not None]
        bound = limit() if room.bounded else None
        found.append(Contents(room.name, room.holds, room.folder, len(sizes), sum(sizes), bound))
    return found


def clear(rooms: Sequence[Room] = ROOMS) -> list[Contents]:
    """Remove every file of the rooms; what was removed. Other files in those folders stay.

    Raises:
        UsageError: A file cannot be removed.
    """
    removed = []
    for room in rooms:
        count, size = 0, 0
        for path in room.files():
            stat = _stat(path)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise UsageError(f"{path} cannot be removed: {error.strerror or error}.") from error
            if stat is not None:
                count, size = count + 1, size + stat.st_size
        bound = limit() if room.bounded else None
        removed.append(Contents(room.name, room.holds, room.folder, count, size, bound))
    return removed


def _prune(room: Room, keep: Path) -> None:
    """Remove the least recently used files until the room is within the limit. The caller holds the lock."""
    stats = [(path, _stat(path)) for path in room.files()]
    aged = [(stat.st_mtime_ns, path, stat.st_size) for path, stat in stats if stat is not None]
    total = sum(size for _, _, size in aged)
    for _, path, size in sorted(aged):
        if total <= limit():
            return
        if path != keep:
            with suppress(OSError):
                path.unlink()
            total -= size


def _leftover(room: Room, path: Path) -> bool:
    """A temporary file of a write that was killed (`NAME.safetensors.123.tmp`, hidden or not)."""
    return re.search(re.escape(room.suffix) + r"\.\d+\.tmp$", path.name) is not None


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:  # another process removed it
        return None
