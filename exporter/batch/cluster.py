"""Workers on a Ray cluster that is there already: a task a cell, or one for each part of it and one that puts
them together; each placed by its estimate of memory.

What a lost worker leaves on the shared folder, the next one takes up; Ray itself begins a lost task again.
Progress and the logs of attempts are small files on that folder too: they outlive every node.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.artifact import write_text_atomic
from exporter.batch.collect import Collection
from exporter.batch.elsewhere import Place, Reader, asked, look, problem, work_elsewhere
from exporter.batch.plan import Job
from exporter.batch.split import Line, settle
from exporter.batch.watch import Watcher
from exporter.batch.worker import begun, work
from exporter.errors import BackendMissing, ExporterError, NetworkError, ResourceError, UsageError
from exporter.planning import human
from exporter.progress import NullProgress

GRACE = 10.0
"""Seconds that tasks have to leave their staging in order after Ctrl-C."""
CONNECT = 5.0
POLL = 0.5
"""Seconds between two looks at, and two writes of, what a task is doing."""
CLIENT = "ray://"
SETTINGS = b"\x04"
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + SETTINGS + b"\0\0\0\0\0"
"""How HTTP/2, and so gRPC, begins: whoever speaks it answers with settings of its own."""


class Lost(ExporterError):
    """A worker was lost, and lost again, until nothing more was tried."""

    exit_code = 7


@dataclass
class _Pending:
    job: Job
    seen: int = 0
    said: str = ""


class Cluster:
    """A connection to a cluster.

    Args:
        address: `HOST:PORT` of its head, `ray://HOST:PORT`, or `auto`.

    Raises:
        BackendMissing: Ray is not installed.
        UsageError: An address that is none.
        NetworkError: Nobody answers there.
    """

    def __init__(self, address: str) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise BackendMissing(
                "Ray is needed for --ray and not installed here.", hint='pip install "exporter[cluster]"'
            ) from error
        self.ray: Any = ray
        self.address = address
        _reachable(address)

    def run(
        self,
        jobs: Sequence[Job],
        folder: Path,
        *,
        retries: int,
        watcher: Watcher,
        ended: Callable[[Job], None],
        split: str = "never",
        collection: Collection | None = None,
    ) -> None:
        """Returns when every job is done or has failed. An interrupt cancels the tasks and goes on.

        Args:
            folder: For logs and progress; every node has to see it under the same path.
            split: Which cells are made in parts (`exporter.batch.split.settle`).
            collection: Where artifacts are collected; then nodes that do not see `folder` use their disks.
        """
        if not jobs:
            return
        self._connect()
        try:
            folder = folder.absolute()
            place, shared = self._check_shared(folder, collection)
            cores = sum(int(node["Resources"].get("CPU", 0)) for node in self._nodes())
            largest = max((int(node["Resources"].get("memory", 0)) for node in self._nodes()), default=0)
            split = split if shared else "apart"  # a cell adopts its parts from the shared folder
            settle(jobs, split, cores, largest)
            journal = Reader(self.ray, folder) if collection is not None else None
            _Run(self.ray, folder, retries, largest, watcher, ended, place, journal, self._near).work(jobs)
        finally:
            self.ray.shutdown()

    def _connect(self) -> None:
        try:
            self.ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise NetworkError(
                f"The Ray cluster at {self.address} cannot be used: {first}", hint=HINT
            ) from error

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"]]

    def _check_shared(self, folder: Path, collection: Collection | None) -> tuple[Place, bool]:
        """What a node is asked, which is done here, and whether all see the folder.

        Raises:
            UsageError: A node does not see the folder, and nothing is collected.
            BackendMissing, NetworkError: A node cannot collect.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ask = self.ray.remote(num_cpus=0, max_retries=0)(look)
        shared = True
        with asked(folder, collection) as place:
            answers = {}
            for node in self._nodes():
                if not node["Resources"].get("CPU"):
                    continue  # it takes no cells
                strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                answers[ask.options(scheduling_strategy=strategy).remote(place)] = node["NodeManagerHostname"]
            for reference, host in answers.items():
                try:
                    found = self.ray.get(reference)
                except self.ray.exceptions.RayError:  # it has left meanwhile, or has no exporter
                    continue
                if found["problem"] is not None:
                    raise problem(host, found["problem"])
                shared = shared and found["sees"]
                if not shared and collection is None:
                    raise UsageError(
                        f"The node {host} does not see {folder.parent}.",
                        hint="Choose a folder on storage that every node mounts under the same path, with "
                        "-o; or give a URL with --collect.",
                    )
        return place, shared

    def _near(self, job: Job) -> Any:
        """Where its artifact lies already, if that node is there: only its collection is left to do."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        for node in self._nodes():
            if job.near and job.near.endswith(f"/{node['NodeID'][:8]}"):
                return NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
        return "DEFAULT"


@dataclass
class _Run:
    """One batch on a cluster that is connected."""

    ray: Any
    folder: Path
    retries: int
    largest: int
    watcher: Watcher
    ended: Callable[[Job], None]
    place: Place
    journal: Reader | None
    near: Callable[[Job], Any]
    _pending: dict[Any, _Pending] = field(default_factory=dict)

    def work(self, jobs: Sequence[Job]) -> None:
        self._task = self.ray.remote(max_calls=1)(_task)  # a process a job here, too
        self._line = Line(jobs)
        try:
            for job in sorted(self._line.first(), key=lambda job: -job.row.memory):
                self._begin(job)
            self._follow()
        except BaseException:
            self._cancel()
            raise

    def _begin(self, job: Job) -> None:
        if job.row.memory > self.largest:
            what = "this part" if job.whole is not None else "this cell"
            job.row.fail(
                ResourceError(
                    f"Not enough memory: {what} takes about {human(job.row.memory)}, and the largest "
                    f"node gives Ray {human(self.largest)}.",
                    hint="Start a node with more: `ray start --memory BYTES`.",
                )
            )
            self._told(job)
            return
        attempts = self.folder / f"{job.row.id}.attempts"
        request = {**job.request(attempts), "output": str(job.output.absolute())}
        needs = {"num_cpus": 1, "memory": job.row.memory, "scheduling_strategy": self.near(job)}
        placed = self._task.options(**needs, max_retries=self.retries, name=job.row.id)
        journal = self.journal.actor if self.journal else None
        reference = placed.remote(request, str(_status(self.folder, job)), self.place, journal)
        self._pending[reference] = _Pending(job, begun(attempts))

    def _told(self, job: Job) -> None:
        """A job has ended: say so, and begin what waited for it."""
        self.watcher.ended(job.row)
        self.ended(job)
        for other in self._line.after(job):
            if other.row.error is not None:
                self._told(other)
            else:
                self._begin(other)

    def _follow(self) -> None:
        while self._pending:
            done, _ = self.ray.wait(list(self._pending), num_returns=1, timeout=POLL)
            if self.journal:
                self.journal.copy()
            for one in self._pending.values():
                _look(one, self.folder, self.watcher)
            for reference in done:
                job = self._pending.pop(reference).job
                self._take(reference, job)
                job.row.attempts = begun(self.folder / f"{job.row.id}.attempts")
                _status(self.folder, job).unlink(missing_ok=True)
                self._told(job)

    def _take(self, reference: Any, job: Job) -> None:
        errors = self.ray.exceptions
        try:
            job.take(self.ray.get(reference))
        except errors.OutOfMemoryError:
            job.row.fail(
                ResourceError(
                    "Its node ran out of memory, each time it was begun.",
                    hint="Give Ray less of the node's memory: `ray start --memory BYTES`.",
                )
            )
        except errors.RayTaskError as error:
            first = (str(error.cause).splitlines() or [""])[0]
            job.row.fail(ExporterError(f"The task failed: {type(error.cause).__name__}: {first}"))
        except errors.RayError as error:
            job.row.fail(
                Lost(
                    f"Its worker was lost, each time it was begun ({type(error).__name__}).",
                    hint="Run the same command again when the cluster is well.",
                )
            )

    def _cancel(self) -> None:
        """Tasks are interrupted, so that they leave their staging in order; then cut off."""
        with suppress(Exception):
            for reference in self._pending:
                self.ray.cancel(reference, force=False)
            self.ray.wait(list(self._pending), num_returns=len(self._pending), timeout=GRACE)
        for one in self._pending.values():
            one.job.row.state = "waiting"
            one.job.row.attempts = begun(self.folder / f"{one.job.row.id}.attempts")
            _status(self.folder, one.job).unlink(missing_ok=True)


HINT = "Start one with `ray start --head`, and give its address as --ray HOST:PORT."


def _reachable(address: str) -> None:
    """Ray tries an address that nobody answers for minutes; a socket knows at once."""
    if address == "auto":
        return
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--ray {address}: not HOST:PORT, ray://HOST:PORT or auto.", hint=HINT)
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT) as line:
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                line.sendall(HELLO)
                if line.recv(9)[3:4] != SETTINGS:
                    raise NetworkError(f"What answers at {address} is not a Ray cluster.", hint=HINT)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise NetworkError(f"No Ray cluster answers at {address}: {reason}.", hint=HINT) from error


def _status(folder: Path, job: Job) -> Path:
    return folder / f"{job.row.id}.status"


def _look(one: _Pending, folder: Path, watcher: Watcher) -> None:
    """Tell the watcher what has changed since it was last told."""
    row = one.job.row
    attempts = begun(folder / f"{row.id}.attempts")
    if attempts > one.seen:
        if row.state == "running":
            watcher.again(row, "its node or process is gone")
        row.state, one.seen = "running", attempts
        watcher.started(row)
    with suppress(OSError):
        said = _status(folder, one.job).read_text(encoding="utf-8")
        if said and said != one.said:
            one.said = said
            watcher.working(row, said)


class _FileProgress(NullProgress):
    """What a task is doing, in a file; seldom, for the storage is shared."""

    def __init__(self, path: Path, host: str) -> None:
        self._path, self._host, self._last = path, host, 0.0

    def start(self, label: str, total: float | None = None) -> None:
        if time.monotonic() - self._last >= POLL:
            self._last = time.monotonic()
            with suppress(OSError):
                write_text_atomic(self._path, f"{self._host}: {label}")


def _task(request: dict[str, Any], status: str, place: Place, journal: Any) -> dict[str, Any]:
    """On a node. Paths of models that are not absolute are meant from where the command was given."""
    import ray

    with suppress(OSError):
        os.chdir(request["cwd"])
    node = ray.get_runtime_context().get_node_id()[:8]
    where = f"{socket.gethostname()}/{node}"
    if journal is not None and not place.seen():
        return {**work_elsewhere(work, request, journal, where), "where": where}
    return {**work(request, _FileProgress(Path(status), where)), "where": where}
