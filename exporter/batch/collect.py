"""Hands every finished artifact on to an fsspec URL, and knows what stands there already.

`URL/<cell>/exporter.json` is written last and taken away first: a folder that has one is whole.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from exporter.artifact import MANIFEST, Artifact, FileRecord, Manifest, check_inside, hash_file
from exporter.batch.store import MEMORY, NO_MEMORY, TRIES, Store
from exporter.errors import ArtifactError, ExporterError, NetworkError, UsageError
from exporter.hashing import sha256_of
from exporter.parity.schema import REPORT_FOLDER
from exporter.planning import Plan, human
from exporter.progress import NullProgress, Progress

if TYPE_CHECKING:
    from exporter.batch.state import Row
    from exporter.recipes.matrix import Cell

AWAY = "Move it away, or collect at another URL."


@dataclass(frozen=True)
class Sent:
    """What one artifact's collection did.

    Attributes:
        url: Of its folder.
        files / bytes: That were sent.
        there: Files that stood there already, with the right size and hash.
    """

    url: str
    files: int
    bytes: int
    there: int


class Collection:
    """A URL below which every cell has a folder.

    Attributes:
        url: As in the summary.
        keep: Whether the artifact on this disk stays when it is collected.
        elsewhere: Whether artifacts may be made on other machines' disks, which know themselves if they fit.

    Raises:
        UsageError, BackendMissing: As of `Store`.
    """

    def __init__(self, url: str, *, keep: bool = True) -> None:
        self.store = Store(url)
        self.url, self.keep, self.elsewhere = self.store.url, keep, False

    def at(self, cell: str) -> str:
        """The URL of a cell's folder."""
        return f"{self.url}/{cell}"

    def manifest(self, cell: str) -> Manifest | None:
        """Of the artifact that stands there whole: its files are listed with their sizes. None where there is
        no manifest, or where a file is missing. Costs one file to read and one listing.

        Raises:
            ArtifactError: A manifest that cannot be read.
        """
        content = self.store.read(f"{cell}/{MANIFEST}")
        if content is None:
            return None
        try:
            manifest = Manifest.model_validate(json.loads(content))
        except (ValueError, ValidationError, RecursionError) as error:
            first = str(error).splitlines()[0]
            raise ArtifactError(f"{self.at(cell)}/{MANIFEST} is no manifest: {first}.", hint=AWAY) from error
        for file in manifest.all_files():
            check_inside(file.path)
        return None if _missing(manifest.all_files(), self.store.sizes(cell)) else manifest

    def holds(self, root: Path) -> bool:
        """Whether what stands there has this artifact's manifest, and all its files."""
        wanted = files_of(Artifact.open(root))
        if self.store.read(f"{root.name}/{MANIFEST}") != (root / MANIFEST).read_bytes():
            return False
        return not _missing(wanted, self.store.sizes(root.name))

    def send(self, root: Path, progress: Progress | None = None) -> Sent:
        """Upload what is not there, read everything back, and write the manifest last.

        A file that has the right size there is hashed first (read in full, where the store tells no sha256)
        and sent only if that differs.

        Raises:
            ArtifactError: The files here are not what the manifest says; others stand there.
            DestinationError, NetworkError, StoreFull: As of `Store`; what is read back differs.
        """
        told = progress or NullProgress()
        cell, url = root.name, self.at(root.name)
        wanted = files_of(Artifact.open(root))
        content = (root / MANIFEST).read_bytes()
        before, sizes = self.store.read(f"{cell}/{MANIFEST}"), self.store.sizes(cell)
        if before == content and not _missing(wanted, sizes):
            return Sent(url, 0, 0, len(wanted) + 1)
        names = {file.path for file in wanted}
        others = sorted(
            n for n in sizes if n not in names | {MANIFEST} and not n.startswith(f"{REPORT_FOLDER}/")
        )
        if others:
            raise ArtifactError(f"{url} holds {others[0]}, which is not of this artifact.", hint=AWAY)
        if before is not None:
            self.store.remove(f"{cell}/{MANIFEST}")
        sent = [file for file in wanted if self._sent(root, file, sizes.get(file.path), told)]
        told.start(f"collecting {MANIFEST}")
        self._proven(root / MANIFEST, f"{cell}/{MANIFEST}", sha256_of(root / MANIFEST))
        told.done()
        size = sum(file.bytes for file in sent) + len(content)
        return Sent(url, len(sent) + 1, size, len(wanted) - len(sent))

    def _sent(self, root: Path, file: FileRecord, size: int | None, told: Progress) -> bool:
        """Whether a file had to be sent; afterwards it is there."""
        name = f"{root.name}/{file.path}"
        told.start(f"collecting {file.path} ({human(file.bytes)})")
        try:
            if size == file.bytes and self.store.sha256(name) == file.sha256:
                return False
            self._proven(root / file.path, name, file.sha256)
            return True
        finally:
            told.done()

    def _proven(self, local: Path, name: str, sha256: str) -> None:
        for _ in range(TRIES):
            self.store.put(local, name)
            if self.store.sha256(name) == sha256:
                return
            if sha256_of(local) != sha256:
                self.store.remove(name)
                raise ArtifactError(
                    f"{local} is not what its manifest says; it is not collected.",
                    hint=f"Delete {local.parents[name.count('/') - 1]} and run the same command again.",
                )
        self.store.remove(name)
        raise NetworkError(
            f"{self.url}/{name}: what is read back is not what was sent, {TRIES} times; it is deleted there.",
            hint="The store or the way to it changes bytes. Run the same command again, or use another.",
        )


def files_of(artifact: Artifact) -> list[FileRecord]:
    """What is collected but for the manifest: its files with its hashes, and the report's, hashed now."""
    from exporter.publish import published_files

    files = artifact.manifest.all_files()
    report = set(published_files(artifact)) - {MANIFEST, *(file.path for file in files)}
    return files + [hash_file(artifact.root / name, artifact.root) for name in sorted(report)]


def _missing(files: list[FileRecord], sizes: dict[str, int | None]) -> list[str]:
    return [file.path for file in files if sizes.get(file.path, -1) != file.bytes]


def opened(url: str | None, *, keep: bool = True) -> Collection | None:
    """For a batch, whose cells have processes of their own.

    Raises:
        UsageError: memory://, as well.
    """
    if url is None:
        if not keep:
            raise UsageError(
                "keep: false deletes what is collected, and nothing is.", hint="Name a URL with --collect."
            )
        return None
    made = Collection(url, keep=keep)
    if made.store.protocol == MEMORY:
        raise UsageError(NO_MEMORY, hint="Collect at file:// or at a store.")
    return made


def arrived_whole(
    row: Row, made: Plan, cell: Cell, output: Path, collection: Collection, *, known: str | None = None
) -> bool:
    """Whether nothing is left to do for a cell: its artifact is at the URL, and what stands here, if anything
    does, is the same. Its row is then filled in. Artifacts of other requests are left alone, in both places.

    Raises:
        ArtifactError: Another artifact stands here or there.
        DestinationError, NetworkError: As of `Store`.
    """
    from exporter.batch.plan import finished, otherwise, tell

    here = finished(made, cell, output, known=known)
    there, url = collection.manifest(row.id), collection.at(row.id)
    if there is not None and (other := otherwise(made, cell, there, known=known)):
        raise ArtifactError(f"What stands at {url} was made otherwise (other {', '.join(other)}).", hint=AWAY)
    if there is None or (here and not collection.holds(output)):
        return False
    tell(row, there, output.name)
    arrived(row, url, output)
    return True


def collected(row: Row, request: dict[str, Any], made: Plan, cell: Cell) -> bool:
    """In the worker: whether another one has brought the cell to its end; the row is then filled in."""
    output = Path(request["output"])
    collection = Collection(request["collect"], keep=request["keep"])
    try:
        if not arrived_whole(row, made, cell, output, collection):
            return False
    except NetworkError:  # the conversion need not wait for it; the collection tries again
        return False
    settle_here(row, collection, output)
    return True


def hand_over(row: Row, request: dict[str, Any], progress: Progress) -> None:
    """In the worker: send a cell's artifact; that it could not be sent is in the row."""
    output = Path(request["output"])
    try:
        collection = Collection(request["collect"], keep=request["keep"])
        collection.send(output, progress)
        settle_here(row, collection, output)
    except ExporterError as error:
        not_collected(row, error, output, request.get("where"))
    except Exception as error:
        from exporter.batch.worker import _explained

        not_collected(row, _explained(error), output, request.get("where"))


def not_collected(row: Row, error: ExporterError, output: Path, where: str | None = None) -> None:
    """The artifact is made and judged, and stays; only its way to the URL failed."""
    row.fail(error)
    row.state, row.collected = "uncollected", None
    assert row.error is not None
    node = f" on the node {where}" if where else ""
    stays = f" The artifact stays at {output}{node}." if output.is_dir() else ""
    row.error.message = f"Not collected: {error.message}{stays}"


def confirm(row: Row, collection: Collection, output: Path) -> None:
    """Read from the URL what a worker elsewhere says it has put there."""
    from exporter.batch.plan import tell

    try:
        manifest = collection.manifest(row.id)
        if manifest is None:
            raise NetworkError(f"{collection.at(row.id)} is not whole, though its worker read it back.")
        tell(row, manifest, output.name)
        arrived(row, collection.at(row.id), output)
    except ExporterError as error:
        not_collected(row, error, output)


def settle_here(row: Row, collection: Collection, output: Path) -> None:
    """After an artifact was found whole at the URL: delete it here, where that is asked for."""
    discard(output, only_left=collection.keep)
    arrived(row, collection.at(row.id), output)


def arrived(row: Row, url: str, output: Path) -> None:
    """Note where it is; its report is read there when it is not here."""
    row.collected = url
    if row.report and not (output.parent / row.report).is_file():
        row.report = f"{url}/{row.report.partition('/')[2]}"


def discard(output: Path, *, only_left: bool = False) -> None:
    """Delete an artifact that is collected: out of the way in one step, then its bytes.

    Args:
        only_left: Only what an earlier deletion that was stopped has left.
    """
    aside = output.with_name(f".{output.name}.collected")
    shutil.rmtree(aside, ignore_errors=True)
    if not only_left and output.is_dir():
        output.replace(aside)
        shutil.rmtree(aside, ignore_errors=True)
