"""Writing an artifact so that nothing half-written is ever seen at its destination.

Beside the destination, on the same file system, lie a lock (`.NAME.lock`) and a staging folder
(`.NAME.staging-DIGEST`). The digest covers everything that decides the bytes (source files, target,
options, tool versions), so an interrupted run is resumed only by the same request. A component
counts as complete when its record, written after its files, still matches their hashes.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from exporter.artifact import MANIFEST, Artifact, ComponentRecord, write_text_atomic
from exporter.errors import DestinationError
from exporter.hashing import sha256_of

COMPLETE = ".complete"


class Staging:
    """A staging folder under a lock. Use as a context manager; call `commit()` at the end.

    Leaving without `commit()` keeps the folder, so that the next run of the same request resumes.

    Attributes:
        destination: Where the artifact will appear.
        root: Where it is written meanwhile.
        resumed: Whether an earlier, interrupted run was found.
    """

    def __init__(self, destination: Path, digest: str, *, overwrite: bool = False) -> None:
        self.destination = Path(os.path.abspath(destination.expanduser()))
        self.overwrite = overwrite
        name = self.destination.name
        self.root = self.destination.with_name(f".{name}.staging-{digest[:16]}")
        self._lock_path = self.destination.with_name(f".{name}.lock")
        self._lock = FileLock(self._lock_path, timeout=0)
        self.resumed = False
        self._committed = False

    def __enter__(self) -> Self:
        check_destination(self.destination, overwrite=self.overwrite)
        try:
            self.destination.parent.mkdir(parents=True, exist_ok=True)
            self._acquire()
        except Timeout as error:
            raise DestinationError(
                f"Another exporter process is writing {self.destination}.",
                hint="Wait for it, or choose another folder with -o.",
            ) from error
        except OSError as error:
            raise DestinationError(
                f"{self.destination.parent} cannot be written: {error.strerror or error}.",
                hint="Choose another folder with -o.",
            ) from error
        try:
            self._recover()
            check_destination(self.destination, overwrite=self.overwrite)  # it may have appeared meanwhile
            self.resumed = (self.root / COMPLETE).is_dir()
            (self.root / COMPLETE).mkdir(parents=True, exist_ok=True)
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._committed and not any((self.root / COMPLETE).glob("*.json")):
                shutil.rmtree(self.root, ignore_errors=True)  # nothing worth resuming
        finally:
            self._release()

    def _acquire(self) -> None:
        while True:
            self._lock.acquire()
            if self._lock_path.exists():
                return
            self._lock.release()  # its holder removed it between our open and our lock

    def _release(self) -> None:
        self._lock_path.unlink(missing_ok=True)
        self._lock.release()

    def _recover(self) -> None:
        """A kill between the two renames of an overwrite leaves the old artifact aside: put it back."""
        old = self._old_path()
        if old.exists():
            if self.destination.exists():
                shutil.rmtree(old)
            else:
                old.rename(self.destination)

    def _old_path(self) -> Path:
        return self.destination.with_name(f".{self.destination.name}.replaced")

    def completed(self, name: str) -> ComponentRecord | None:
        """The record of a component an earlier run finished, if its files still have their hashes."""
        marker = self.root / COMPLETE / f"{name}.json"
        if not marker.is_file():
            return None
        try:
            record = ComponentRecord.model_validate_json(marker.read_text(encoding="utf-8"))
        except ValueError:
            marker.unlink()
            return None
        for file in record.files:
            path = self.root / file.path
            if not path.is_file() or path.stat().st_size != file.bytes or sha256_of(path) != file.sha256:
                marker.unlink()
                return None
        return record

    def mark_complete(self, record: ComponentRecord) -> None:
        """Remember a finished component. Its files are flushed to disk first."""
        for file in record.files:
            with (self.root / file.path).open("rb") as handle:
                os.fsync(handle.fileno())
        write_text_atomic(self.root / COMPLETE / f"{record.name}.json", record.model_dump_json())

    def adopt(self, artifact: Artifact, record: ComponentRecord) -> None:
        """Take a component of another artifact as if it had been written here; `completed` proves its bytes.

        Its files are linked, where the file system can, else copied.

        Raises:
            ArtifactError: The record names a path outside of its artifact.
        """
        for file in record.files:
            path = self.root / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # never into what another folder may hold by the same link
            try:
                os.link(artifact.path(file.path), path)
            except FileNotFoundError:
                continue  # of the part; then it is not complete, which `completed` finds
            except OSError:
                shutil.copyfile(artifact.path(file.path), path)
        if all((self.root / file.path).is_file() for file in record.files):
            self.mark_complete(record)

    def commit(self) -> None:
        """Rename the staging folder to the destination; with `overwrite`, replace what is there."""
        shutil.rmtree(self.root / COMPLETE)
        if self.destination.exists() and any(self.destination.iterdir()):
            old = self._old_path()
            self.destination.rename(old)
            self.root.rename(self.destination)
            shutil.rmtree(old, ignore_errors=True)
        else:
            self.root.rename(self.destination)
        self._committed = True
        for stale in self.destination.parent.glob(f".{self.destination.name}.staging-*"):
            shutil.rmtree(stale, ignore_errors=True)


def check_destination(destination: Path, *, overwrite: bool) -> None:
    """Refuse a destination that would lose something.

    Raises:
        DestinationError: It exists (and is no empty folder) without `overwrite`, or is not an
            artifact of ours, which is never deleted.
    """
    if not destination.exists():
        if not destination.name:
            raise DestinationError(f"{destination} is no folder an artifact can be written to.")
        return
    if not destination.is_dir():
        raise DestinationError(f"{destination} exists and is not a folder.", hint="Choose another with -o.")
    if not any(destination.iterdir()):
        return
    if not (destination / MANIFEST).is_file():
        raise DestinationError(
            f"{destination} exists and was not made by exporter, so it is left alone.",
            hint="Choose another folder with -o.",
        )
    if not overwrite:
        raise DestinationError(
            f"{destination} exists already.", hint="Add --overwrite to replace it, or choose another with -o."
        )
