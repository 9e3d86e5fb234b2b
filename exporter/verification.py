"""Runs the verifier in a process of its own, so that it sees the bytes on disk and nothing else.

The child is `python -m exporter.verification`; it reads one JSON request on stdin and writes JSON
lines on stdout: progress events, then the outcome.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporter.artifact import Artifact
from exporter.errors import ExporterError
from exporter.progress import Progress


@dataclass(frozen=True)
class Outcome:
    """Verdict, its sentence, and the report's page relative to the artifact."""

    verdict: str
    summary: str
    report: str | None = None


class _PipeProgress:
    """Sends progress to the parent, one JSON line an event."""

    def start(self, label: str, total: float | None = None) -> None:
        _emit({"event": "start", "label": label, "total": total})

    def update(self, completed: float, detail: str | None = None) -> None:
        _emit({"event": "update", "completed": completed, "detail": detail})

    def done(self) -> None:
        _emit({"event": "done"})


def verify_in_fresh_process(
    root: Path, destination: Path, source: str, settings: dict[str, Any], progress: Progress
) -> Outcome:
    """Verify the artifact at `root`.

    Args:
        root: Where the artifact lies now (staging).
        destination: Where it will lie; named in the report's command.
        source: The checkpoint to judge against.
        settings: Keyword arguments of `exporter.parity.verify`.

    Returns:
        The outcome. A verifier that could not run gives INCONCLUSIVE with its reason: never PASS.
    """
    request = {
        "root": str(root),
        "destination": str(destination),
        "source": source,
        "settings": settings,
    }
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:  # a pipe nobody reads would block the child
        child = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "exporter.verification"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert child.stdin
        try:
            child.stdin.write(json.dumps(request))
            child.stdin.close()
            outcome = _relay(child, progress)
            child.wait()
        except BaseException:
            child.kill()
            child.wait()
            raise
        log.seek(0)
        errors = log.read()
    if outcome is not None:
        return outcome
    from exporter.targets import get_target

    known = get_target(Artifact.open(root).manifest.target).crashes
    why = how_it_ended(child.returncode, errors, known)
    return Outcome("INCONCLUSIVE", f"the verifier stopped without a verdict ({why})")


def how_it_ended(status: int, errors: str, known: Mapping[int, str] | None = None) -> str:
    """Why a process ended: the signal that did it, or the last thing it said and where.

    Args:
        known: What is known of the artifact's runtime, by signal (`Target.crashes`).
    """
    if status < 0:
        name = signal.strsignal(-status) or f"signal {-status}"
        memory = ": it may have run out of memory" if -status == signal.SIGKILL else ""
        advice = f"; {known[-status]}" if known and -status in known else ""
        return f"its process was ended by the system, {name}{_place(errors)}{advice}{memory}"
    if not errors.strip():
        return f"exit status {status}"
    said = errors.strip().splitlines()[-1]
    places = re.findall(r'^  File ".*?(exporter/[\w/]+\.py)", line (\d+)', errors, re.MULTILINE)
    return said + "".join(f", at {file} line {line}" for file, line in places[-1:])


def _place(errors: str) -> str:
    """Which call a native library did not come back from, as Python's faulthandler writes it down."""
    found = re.search(r'^Current thread .*\n  File "(.*?)", line \d+ in (\S+)', errors, re.MULTILINE)
    if found is None:
        return ""
    file, call = found.groups()
    return f", in {call} of {Path(file).parent.name or file}"


def _relay(child: subprocess.Popen[str], progress: Progress) -> Outcome | None:
    outcome = None
    assert child.stdout
    for line in child.stdout:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # a library printed something
        kind = event.get("event") if isinstance(event, dict) else None
        if kind == "start":
            progress.start(f"verify: {event['label']}", event["total"])
        elif kind == "update":
            progress.update(event["completed"], event["detail"])
        elif kind == "done":
            progress.done()
        elif kind == "outcome":
            outcome = Outcome(event["verdict"], event["summary"], event["report"])
    return outcome


def _emit(event: dict[str, Any]) -> None:
    sys.__stdout__.write(json.dumps(event) + "\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


def _child() -> None:
    request = json.load(sys.stdin)
    sys.stdout = sys.stderr  # libraries may print; the pipe carries only events
    from exporter import parity

    try:
        report = parity.verify(
            request["root"],
            against=request["source"],
            shown_path=request["destination"],
            progress=_PipeProgress(),
            **request["settings"],
        )
        recorded = Artifact.open(request["root"]).manifest.verification
        page = recorded.report if recorded else None
        outcome = Outcome(report.verdict, report.summary, page)
    except ExporterError as error:
        outcome = Outcome("INCONCLUSIVE", f"could not be verified: {error.message}")
    _emit({"event": "outcome", **asdict(outcome)})


if __name__ == "__main__":
    _child()
