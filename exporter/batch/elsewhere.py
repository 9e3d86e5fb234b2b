"""Nodes of a cluster that do not see the folder of the batch: they work on their own disks, and their
artifacts go to the URL. What they are asked before any work, and how they tell what they are doing.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.artifact import now, write_text_atomic
from exporter.batch.collect import Collection
from exporter.batch.store import Store
from exporter.errors import BackendMissing, ExporterError, NetworkError, UsageError
from exporter.progress import NullProgress, Progress

PROBE = "shared"
QUIET = 0.5
"""Seconds between two messages of one task about what it is doing."""


@dataclass(frozen=True)
class Place:
    """What a node is asked about; made by `asked`.

    Attributes:
        probe / token: A file of the batch's folder, and what it says.
        url / witness: Where artifacts are collected, and the name of a file there that says `token`.
    """

    probe: str
    token: str
    url: str | None = None
    witness: str | None = None

    def seen(self) -> bool:
        """Whether this node sees the folder of the batch, and not another one of the same path."""
        with suppress(OSError, ValueError):
            return Path(self.probe).read_text(encoding="utf-8") == self.token
        return False


@contextmanager
def asked(work: Path, collection: Collection | None) -> Iterator[Place]:
    """The files that nodes look for. The one at the URL is gone afterwards."""
    token = secrets.token_hex(16)
    write_text_atomic(work / PROBE, token)
    if collection is None:
        yield Place(str(work / PROBE), token)
        return
    with collection.store.witness(token.encode()) as name:
        yield Place(str(work / PROBE), token, collection.url, name)


def look(place: Place) -> dict[str, Any]:
    """On a node: whether it `sees` the batch's folder, and the `problem` that it would have without."""
    seen = place.seen()
    if place.url is None or place.witness is None:
        return {"sees": seen, "problem": None}
    try:
        if not seen:
            _writable(Path(place.probe).parent)
        store = Store(place.url)
        if store.read(place.witness) != place.token.encode():
            raise UsageError(
                f"{place.url} is another place there: what this machine writes there is not seen.",
                hint="Collect at a URL that is the same place for every node.",
            )
        store.probe()
    except ExporterError as error:
        return {"sees": seen, "problem": [error.exit_code, error.message, error.hint]}
    return {"sees": seen, "problem": None}


def problem(host: str, found: list[Any]) -> ExporterError:
    """What `look` found, as an error of this machine."""
    code, message, hint = found
    kind = {4: BackendMissing, 7: NetworkError}.get(code, UsageError)
    return kind(f"On the node {host}: {message}", hint=hint)


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text_atomic(folder / "writable", "")
        (folder / "writable").unlink()
    except OSError as error:
        raise UsageError(
            f"{folder.parent} cannot be written: {error.strerror or error}.",
            hint="Choose a folder that every node can write on its own disk, with -o.",
        ) from error


class Journal:
    """What cells elsewhere are doing; an actor on the head of the cluster, whose loss is the cluster's."""

    def __init__(self) -> None:
        self._lines: list[tuple[str, str]] = []
        self._said: dict[str, str] = {}

    def note(self, cell: str, line: str) -> None:
        """A line for the cell's log of attempts."""
        self._lines.append((cell, line))

    def say(self, cell: str, text: str) -> None:
        """What it is at."""
        self._said[cell] = text

    def take(self) -> tuple[list[tuple[str, str]], dict[str, str]]:
        """What has come since this was last called."""
        found = self._lines, self._said
        self._lines, self._said = [], {}
        return found


class Reader:
    """The driver's side: news become the files that nodes with shared storage write themselves."""

    def __init__(self, ray: Any, folder: Path) -> None:
        self._ray, self._folder = ray, folder
        head = {"node:__internal_head__": 0.001}
        self.actor = ray.remote(num_cpus=0, max_restarts=0)(Journal).options(resources=head).remote()

    def copy(self) -> None:
        """Of a journal that is lost there is no more news; results come nevertheless."""
        with suppress(self._ray.exceptions.RayError):
            lines, said = self._ray.get(self.actor.take.remote(), timeout=10)
            for cell, line in lines:
                with (self._folder / f"{cell}.attempts").open("a", encoding="utf-8") as log:
                    log.write(line + "\n")
            for cell, text in said.items():
                write_text_atomic(self._folder / f"{cell}.status", text)


class _Said(NullProgress):
    def __init__(self, say: Callable[[str], object]) -> None:
        self._say, self._last = say, 0.0

    def start(self, label: str, total: float | None = None) -> None:
        if time.monotonic() - self._last >= QUIET:
            self._last = time.monotonic()
            self._say(label)


def work_elsewhere(
    work: Callable[[dict[str, Any], Progress], dict[str, Any]],
    request: dict[str, Any],
    journal: Any,
    where: str,
) -> dict[str, Any]:
    """In a task on such a node: `work`, on this node's own disk, told to the journal."""
    import ray

    cell, log = request["id"], Path(request["attempts"])
    log.parent.mkdir(parents=True, exist_ok=True)
    before = len(_lines(log))

    def send(line: str) -> None:
        with suppress(ray.exceptions.RayError):
            ray.get(journal.note.remote(cell, line), timeout=10)

    def say(text: str) -> None:
        journal.say.remote(cell, f"{where}: {text}")

    send(json.dumps({"when": now(), "host": socket.gethostname(), "pid": os.getpid(), "what": "begun"}))
    result = work({**request, "where": where}, _Said(say))
    for line in _lines(log)[before + 1 :]:  # `work` has noted that it began, too
        send(line)
    return result


def _lines(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
