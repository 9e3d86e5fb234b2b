"""Does one job: what runs in a process of its own here (`python -m exporter.batch.worker`), or in a task
of a cluster.

A job may be begun twice, after a worker was lost; it takes up what that one left. What is complete is not
done again, whoever asks.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import Timeout

from exporter.artifact import now
from exporter.errors import DestinationError, ExporterError
from exporter.progress import Progress

if TYPE_CHECKING:
    from exporter.planning import Plan
    from exporter.recipes import Cell

PATIENCE = 120.0
"""Seconds to wait for the lock of a worker that was given up."""


def work(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Convert and judge one cell, or convert one part of one.

    Args:
        request: As `Job.request` made it.

    Returns:
        The row's fields that are known now, as JSON values.
    """
    from exporter.adoption import PartRefused
    from exporter.batch.collect import collected, hand_over
    from exporter.batch.plan import describe
    from exporter.batch.state import Row
    from exporter.conversion import convert
    from exporter.recipes import Cell, Recipe, plan
    from exporter.recipes.running import recorded_recipe

    recipe = Recipe.model_validate(request["recipe"])
    assert recipe.target is not None
    output = Path(request["output"])
    row = Row(id=request["id"], model="", recipe="", target=recipe.target, where=socket.gethostname())
    began, url = time.monotonic(), request.get("collect")
    note(request, "begun")
    try:
        cell = Cell(row.id, {}, recipe, output)
        made = plan(cell, progress)
        settings, recorded = recipe.verify.settings(), recorded_recipe(cell)
        adopt, part = [Path(each) for each in request["adopt"]], bool(request["part"])
        while True:
            if (url and collected(row, request, made, cell)) or _there(request, made, cell, output):
                row.state = "kept"
                break
            try:
                convert(
                    made, progress=progress, verify_settings=settings, recipe=recorded, adopt=adopt, part=part
                )
            except PartRefused as error:
                shutil.rmtree(error.part, ignore_errors=True)  # the next run makes it anew
                raise
            except DestinationError as error:
                # A worker that was given up may live on for a while; its lock goes with it.
                if not isinstance(error.__cause__, Timeout) or time.monotonic() - began > PATIENCE:
                    raise
                progress.start("waiting for a worker that was given up")
                time.sleep(1)
                continue
            row.state = "done"
            break
        if not row.collected:
            describe(row, output)
        row.digest = made.digest
    except Exception as error:
        row.fail(_explained(error))
    row.seconds = round(time.monotonic() - began, 3)
    note(request, row.state)
    if row.error is None and url and not row.collected:
        hand_over(row, request, progress)
        note(request, "collected" if row.collected else "uncollected")
    known = (
        "collected",
        "state",
        "verdict",
        "summary",
        "bytes",
        "seconds",
        "report",
        "digest",
        "where",
        "error",
    )
    return {name: value for name, value in row.model_dump(mode="json").items() if name in known}


def _there(request: dict[str, Any], made: Plan, cell: Cell, output: Path) -> bool:
    """Whether an earlier worker has finished it. A part that is not whole is ours to delete."""
    from exporter.batch.plan import finished
    from exporter.batch.split import stands

    if not request["part"]:
        return finished(made, cell, output)
    if stands(output):
        return True
    shutil.rmtree(output, ignore_errors=True)
    return False


def note(request: dict[str, Any], what: str) -> None:
    """One line in the job's log of attempts; short lines that are appended do not mix."""
    line = json.dumps({"when": now(), "host": socket.gethostname(), "pid": os.getpid(), "what": what})
    with Path(request["attempts"]).open("a", encoding="utf-8") as log:
        log.write(line + "\n")


def begun(attempts: Path) -> int:
    """How often a job was begun, by its log."""
    return attempts.read_text(encoding="utf-8").count('"begun"') if attempts.is_file() else 0


class _OutOfSpace(ExporterError):
    exit_code = 6


class _Bug(ExporterError):
    exit_code = 3


def _explained(error: Exception) -> ExporterError:
    """Any error of a job as one sentence; it must not stop the others."""
    if isinstance(error, ExporterError):
        return error
    first = (str(error).strip().splitlines() or ["no message"])[0]
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return _OutOfSpace("The machine ran out of memory.", hint="Give fewer --jobs.")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
        return _OutOfSpace(f"The disk or the memory is full: {first}.", hint="Free some, and run it again.")
    return _Bug(f"This is a bug in exporter, or of a library: {type(error).__name__}: {first}")


class _PipeProgress:
    """Progress as JSON lines."""

    def start(self, label: str, total: float | None = None) -> None:
        _emit({"event": "start", "label": label})

    def update(self, completed: float, detail: str | None = None) -> None:
        pass

    def done(self) -> None:
        pass


def _emit(event: dict[str, Any]) -> None:
    sys.__stdout__.write(json.dumps(event) + "\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


def _end_with_parent() -> None:
    """Our stdin ends when the parent does, however it ended: then nobody waits for this work."""
    while os.read(0, 4096):
        pass
    if os.getpgrp() == os.getpid():  # ours alone: the verifier is in it, our parent is not
        os.killpg(0, signal.SIGINT)
        time.sleep(10)
        os.killpg(0, signal.SIGKILL)


def main() -> None:
    """One request on stdin, events and the result on stdout."""
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.stdout = sys.stderr  # libraries may print; the pipe carries only events
    try:
        result = work(request, _PipeProgress())
    except KeyboardInterrupt:
        note(request, "interrupted")
        sys.exit(130)
    _emit({"event": "result", "row": result})


if __name__ == "__main__":
    main()
