"""Which artifacts may run code: those this installation made, and those somebody vouches for.

TorchScript and `.pt2` are programs: opening one runs what its author wrote. So a target whose files
are programs (`Target.executable`) opens a component only when its files have the hashes the
manifest gives *and* these hashes are in the record of what was made here, or when the caller says
that they trust it. The check reads bytes and runs nothing.

The record is a text file of sha256 digests in the user's state folder. Whoever can write there can
run programs as that user anyway. An artifact that is copied or renamed on this machine stays ours.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from exporter.artifact import ComponentRecord
from exporter.errors import InputError
from exporter.hashing import sha256_of

RECORD = "made-here.txt"
_HASHES: dict[tuple[str, int, int, int], str] = {}


class UntrustedArtifact(InputError):
    """The artifact is a program of unknown origin; nothing of it was opened."""


def state_folder() -> Path:
    """`$EXPORTER_STATE` or `$XDG_STATE_HOME/exporter` or `~/.local/state/exporter`."""
    chosen = os.environ.get("EXPORTER_STATE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "exporter"


def remember(record: ComponentRecord) -> None:
    """Note the digests of a component that was just exported here.

    Where the folder cannot be written nothing is noted: the artifact then needs to be trusted by hand.
    """
    known = made_here()
    fresh = sorted({file.sha256 for file in record.files} - known)
    if not fresh:
        return
    try:
        folder = state_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # One write in append mode: two processes never mix their lines.
        handle = os.open(folder / RECORD, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(handle, "".join(f"{digest}\n" for digest in fresh).encode())
        finally:
            os.close(handle)
    except OSError:
        return


def made_here() -> set[str]:
    """The digests of all files of programs that this installation made."""
    try:
        return set((state_folder() / RECORD).read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError):
        return set()


def require(root: Path, records: Iterable[ComponentRecord], *, trust: bool) -> None:
    """Let only programs pass that were made here, byte for byte, or that the caller trusts.

    Args:
        root: The artifact's folder.
        records: Components whose files are programs.
        trust: The caller vouches for them.

    Raises:
        UntrustedArtifact: A file differs from its hash in the manifest, or was not made here.
    """
    why = None if trust else doubt(root, records)
    if why is not None:
        raise UntrustedArtifact(
            f"{why}, so it was not opened.",
            hint="If you trust whoever made it, say so: --trust (in Python trust=True).",
        )


def doubt(root: Path, records: Iterable[ComponentRecord], *, rehash: bool = True) -> str | None:
    """Why programs are not opened here unless somebody vouches for them; None when they are.

    Args:
        rehash: Read every file; otherwise the manifest is believed about them.
    """
    ours = made_here()
    for record in records:
        claimed = {file.path: file.sha256 for file in record.files}
        for path in sorted({record.entry, *claimed}):
            why = _doubt(root / path, claimed.get(path), ours, rehash)
            if why is not None:
                return f"{path} is a program, and {why}"
    return None


def _doubt(path: Path, claimed: str | None, ours: set[str], rehash: bool) -> str | None:
    if claimed is None:
        return "the manifest gives no hash for it"
    if not path.is_file():
        return "it is missing"
    if rehash and _hash(path) != claimed:
        return "it is not the file that the manifest describes"
    if claimed not in ours:
        return "it was not made by this installation of exporter"
    return None


def _hash(path: Path) -> str:
    """sha256 of a file, read again only when its size, time or inode changed: verification opens a
    component several times, and hashing takes a second per gigabyte."""
    stat = path.stat()
    key = (str(path.absolute()), stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if key not in _HASHES:
        _HASHES[key] = sha256_of(path)
    return _HASHES[key]
