"""Workers on this machine: a process a cell, as many at once as there are slots and memory for.

A process a cell gives its memory back when it ends, and takes nobody with it when it is killed.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

from exporter.batch.plan import Job
from exporter.batch.split import Line
from exporter.batch.watch import Watcher
from exporter.batch.worker import begun
from exporter.errors import InputError, ResourceError
from exporter.planning import free_memory, human

GRACE = 10.0
"""Seconds a worker has to leave its staging folder in order after Ctrl-C."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class _Running:
    job: Job
    child: subprocess.Popen[str]
    log: IO[str]
    result: dict[str, Any] | None = None

    def resident(self) -> int:
        """Bytes of the worker and its own children (the verifier)."""
        try:
            process = psutil.Process(self.child.pid)
            return sum(_rss(one) for one in [process, *process.children(recursive=True)])
        except psutil.Error:
            return 0


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


@dataclass
class Pool:
    """Runs jobs.

    Args:
        folder: For logs.
        slots: Jobs at once, at most.
        memory: Bytes all of them may take together; None is what is free.
        retries: How often a job is begun again whose worker died.
        watcher: Is told of everything.
        ended: Called after each job, its row filled in.
    """

    folder: Path
    slots: int
    memory: int | None
    retries: int
    watcher: Watcher
    ended: Callable[[Job], None]
    _running: dict[int, _Running] = field(default_factory=dict)
    _events: queue.Queue[tuple[int, dict[str, Any] | None]] = field(default_factory=queue.Queue)
    _lost: dict[str, int] = field(default_factory=dict)
    _line: Line = field(default_factory=lambda: Line(()))

    def run(self, jobs: Sequence[Job]) -> None:
        """Returns when every job is done or has failed. An interrupt stops the workers and goes on."""
        self._line = Line(jobs)
        waiting = sorted(
            self._line.first(), key=lambda job: -job.row.memory
        )  # large ones fit while little runs
        try:
            while waiting or self._running:
                self._launch(waiting)
                try:
                    number, event = self._events.get(timeout=1.0)
                except queue.Empty:
                    continue
                self._handle(number, event, waiting)
        finally:
            self._stop()

    def _launch(self, waiting: list[Job]) -> None:
        for job in list(waiting):
            if len(self._running) >= self.slots:
                return
            if job.row.memory <= self._free():
                waiting.remove(job)
                self._begin(job)
            elif not self._running:  # nothing of ours will become free
                waiting.remove(job)
                self._refuse(job, waiting)

    def _free(self) -> int:
        """Bytes that are free and not yet promised to a worker that has still to take them."""
        promised = sum(max(0, one.job.row.memory - one.resident()) for one in self._running.values())
        free = free_memory() - promised
        if self.memory is not None:
            free = min(free, self.memory - sum(one.job.row.memory for one in self._running.values()))
        return free

    def _refuse(self, job: Job, waiting: list[Job]) -> None:
        job.row.fail(
            ResourceError(
                f"Not enough memory: this cell takes about {human(job.row.memory)}, and "
                f"{human(max(self._free(), 0))} are free with no other cell running.",
                hint="Close other programs, raise --memory, or run it on a larger machine.",
            )
        )
        self._told(job, waiting)

    def _told(self, job: Job, waiting: list[Job]) -> None:
        """A job has ended: say so, and see what can be begun now."""
        self.watcher.ended(job.row)
        self.ended(job)
        for other in self._line.after(job):
            if other.row.error is not None:
                self._told(other, waiting)
            else:
                waiting.insert(0, other)  # it has waited longest

    def _begin(self, job: Job) -> None:
        log = (self.folder / f"{job.row.id}.log").open("a", encoding="utf-8")
        threads = str(max(1, cores() // self.slots))
        child = subprocess.Popen(
            [sys.executable, "-m", "exporter.batch.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            env={**dict.fromkeys(THREADS, threads), **os.environ},
            start_new_session=True,  # Ctrl-C reaches us alone; we tell the workers
        )
        self._running[child.pid] = _Running(job, child, log)
        assert child.stdin
        try:
            child.stdin.write(json.dumps(job.request(self.folder / f"{job.row.id}.attempts")) + "\n")
            child.stdin.flush()  # and stays open: its end tells the worker that we are gone
        except BrokenPipeError:
            pass  # it died at once; its end is noticed below
        threading.Thread(target=self._read, args=(child,), daemon=True).start()
        job.row.state = "running"
        self.watcher.started(job.row)

    def _read(self, child: subprocess.Popen[str]) -> None:
        assert child.stdout
        for line in child.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                self._events.put((child.pid, event))
        self._events.put((child.pid, None))

    def _handle(self, number: int, event: dict[str, Any] | None, waiting: list[Job]) -> None:
        one = self._running[number]
        if event is None:
            self._end(self._running.pop(number), waiting)
        elif event.get("event") == "result":
            one.result = event["row"]
        elif event.get("event") == "start":
            self.watcher.working(one.job.row, event["label"])

    def _end(self, one: _Running, waiting: list[Job]) -> None:
        status = one.child.wait()
        _close(one)
        job, row = one.job, one.job.row
        row.attempts = begun(self.folder / f"{row.id}.attempts")
        if one.result is not None:
            job.take(one.result)
        else:
            why = _why(status, self.folder / f"{row.id}.log")
            self._lost[row.id] = self._lost.get(row.id, 0) + 1
            if self._lost[row.id] <= self.retries:
                row.state = "waiting"
                waiting.append(job)
                self.watcher.again(row, why)
                return
            times = self._lost[row.id]
            message = f"Its worker was lost {times} time{'s' if times > 1 else ''}: {why}."
            killed = status == -signal.SIGKILL
            hint = "Something killed it, perhaps for want of memory: give fewer --jobs." if killed else None
            row.fail(ResourceError(message, hint=hint) if killed else InputError(message, hint=hint))
        self._told(job, waiting)

    def _stop(self) -> None:
        """Workers that still run are interrupted, so that they leave their staging in order."""
        for one in self._running.values():
            _signal(one.child, signal.SIGINT)
        deadline = time.monotonic() + GRACE
        for one in self._running.values():
            with suppress(subprocess.TimeoutExpired):
                one.child.wait(max(0.1, deadline - time.monotonic()))
            _signal(one.child, signal.SIGKILL)  # the whole group: what the worker started, too
            one.child.wait()
            _close(one)
            one.job.row.state = "waiting"
            one.job.row.attempts = begun(self.folder / f"{one.job.row.id}.attempts")
        self._running.clear()


def _signal(child: subprocess.Popen[str], number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


def _close(one: _Running) -> None:
    try:
        if one.child.stdin:
            one.child.stdin.close()
    except BrokenPipeError:
        pass
    one.log.close()


def _why(status: int, log: Path) -> str:
    if status < 0:
        return f"killed by signal {-status} ({signal.Signals(-status).name})"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"exit status {status}{', ' + lines[-1][:300] if lines else ''}"
