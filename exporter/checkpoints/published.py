"""Artifacts that were published on the Hub, as folders on this disk.

The Hub's cache keeps files as links into a store of blobs. Runtimes refuse weights behind a link (ONNX
Runtime, OpenVINO), and a verdict has to be written beside the files; so the files of an artifact are
laid out as hard links, or copies where the file system has none, in a folder of this package's cache.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from filelock import FileLock

from exporter.artifact import MANIFEST, Artifact, check_inside
from exporter.cache import root
from exporter.checkpoints.hub import Snapshot, download, is_hub_id
from exporter.errors import ArtifactError
from exporter.progress import Progress


def local_folder(
    source: str | Path, *, revision: str | None = None, progress: Progress | None = None
) -> Path | None:
    """The folder of an artifact, fetched if it is a Hub id; None when it is a checkpoint on the Hub.

    A path is returned as it is, whether or not anything is there.

    Raises:
        NetworkError, CheckpointError: The Hub cannot be asked, or has nothing we know.
        ArtifactError: The manifest is broken.
    """
    path = Path(source).expanduser()
    if path.exists() or not is_hub_id(str(source)):
        return path
    snapshot = download(str(source), revision=revision, progress=progress)
    return lay_out(snapshot) if snapshot.kind == "artifact" else None


def artifact_folder(source: str | Path, *, progress: Progress | None = None) -> Path:
    """As `local_folder`, for a source that has to be an artifact.

    Raises:
        ArtifactError: It is a checkpoint on the Hub.
    """
    folder = local_folder(source, progress=progress)
    if folder is None:
        raise ArtifactError(
            f"{source} is a checkpoint on the Hub, not an artifact.",
            hint=f"Convert it first: exporter convert {source} --to onnx.",
        )
    return folder


def lay_out(snapshot: Snapshot) -> Path:
    """The files of a downloaded artifact as plain files."""
    folder = root() / "artifacts" / snapshot.repo.replace("/", "--") / str(snapshot.revision)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if (folder / MANIFEST).is_file():
            return folder
        building = folder.with_name(f".{folder.name}.building")
        shutil.rmtree(building, ignore_errors=True)
        Artifact.open(snapshot.root)  # refuses a manifest that names paths outside
        for file in snapshot.files:
            check_inside(file.path)
            source, target = (snapshot.root / file.path).resolve(), building / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            # The manifest and the report are written again by a verification, and must not reach the blobs.
            linked = file.path != MANIFEST and not file.path.startswith("verification/")
            _place(source, target, link=linked)
        building.replace(folder)
    return folder


def _place(source: Path, target: Path, *, link: bool) -> None:
    if link:
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without hard links
            pass
    shutil.copyfile(source, target)
