"""One command in a process group of its own, with a limit of time and memory: native libraries can end it,
and it may hang."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

RUNNING: set[int] = set()
"""Process groups at work."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: Exit status; minus the signal's number where one ended it.
        out: What it wrote to stdout.
        peak_mb: Largest resident memory seen of it and its children together, in MB.
        stopped: Why it was stopped from here; empty where it ended by itself.
    """

    status: int
    out: str
    peak_mb: int
    stopped: str = ""


def watched(
    command: list[str],
    log: Path,
    *,
    folder: Path,
    environment: dict[str, str],
    seconds: float,
    memory_mb: int,
) -> Ended:
    """Run a command; stderr goes to `log` as it comes, so that a run cut off leaves it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    printed = log.with_suffix(".out")
    peak, stopped, started = 0, "", time.monotonic()
    with log.open("w") as errors, printed.open("w") as out:
        child = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=out, stderr=errors, start_new_session=True
        )
        RUNNING.add(child.pid)
        try:
            while child.poll() is None:
                peak = max(peak, _resident_mb(child.pid))
                if peak > memory_mb:
                    stopped = f"stopped at {peak} MB, over the limit of {memory_mb} MB"
                elif time.monotonic() - started > seconds:
                    stopped = f"stopped after {seconds:.0f} s"
                if stopped:
                    _kill(child.pid)
                    child.wait()
                    break
                _wait(child)
        finally:
            RUNNING.discard(child.pid)
    text = printed.read_text(encoding="utf-8", errors="replace")
    printed.unlink()
    return Ended(child.returncode, text, peak, stopped)


def kill_all() -> None:
    """End every command at work here: a session of its own hears nothing of an interrupt at the terminal."""
    for group in list(RUNNING):
        _kill(group)


def _wait(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        return


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def _resident_mb(pid: int) -> int:
    """Of a process and its children; 0 of one that is gone."""
    total = 0
    try:
        first = psutil.Process(pid)
        for each in (first, *first.children(recursive=True)):
            try:
                total += each.memory_info().rss
            except psutil.Error:
                continue
    except psutil.Error:
        return 0
    return total // 1_000_000
