"""What a process took: wall and processor time, peak resident memory, and the part of it that is its own."""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

SAMPLED_EVERY = 0.05


@dataclass(frozen=True)
class Measured:
    """One run of a command.

    Attributes:
        seconds: From start to exit.
        cpu_seconds: Of the processor, children included: steadier than `seconds` on a shared machine.
        peak_mb: The kernel's count of the peak resident set (`ru_maxrss`); mapped files are in it.
        anonymous_mb: Peak of the resident memory that no file backs (`RssAnon`), sampled; NaN off Linux.
        written_mb: What lies in the output folder.
        code: Exit code.
    """

    what: str
    seconds: float
    cpu_seconds: float
    peak_mb: float
    anonymous_mb: float
    written_mb: float
    code: int


def measure(
    what: str, command: list[str], output: Path, environment: dict[str, str] | None = None
) -> Measured:
    """Run a command to its end; what it prints goes to a file beside `output`, and is shown if it fails."""
    os.sync()  # what earlier steps wrote must not be paid for by this one
    begin = time.monotonic()
    log = output.with_suffix(".log")
    with log.open("wb") as sink:
        actions = [(os.POSIX_SPAWN_DUP2, sink.fileno(), 1), (os.POSIX_SPAWN_DUP2, sink.fileno(), 2)]
        offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        child = os.posix_spawn(
            command[0], command, {**os.environ, **offline, **(environment or {})}, file_actions=actions
        )
        watch = Watch(child)
        _, status, usage = os.wait4(child, 0)
    seconds = time.monotonic() - begin
    anonymous = watch.stop()
    size = sum(f.stat().st_size for f in output.rglob("*") if f.is_file()) if output.is_dir() else 0
    code = os.waitstatus_to_exitcode(status)
    if code:
        print(log.read_text(errors="replace")[-2000:], file=sys.stderr)
    cpu = usage.ru_utime + usage.ru_stime
    return Measured(what, seconds, cpu, usage.ru_maxrss / 1024, anonymous, size / 2**20, code)


class Watch(threading.Thread):
    """Samples the anonymous memory of a process and its children; the largest of any one of them counts,
    as it does in `ru_maxrss`."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self._process = process
        self._peak = 0.0
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ended.wait(SAMPLED_EVERY):
            for process in (self._process, *_children(self._process)):
                self._peak = max(self._peak, anonymous_mb(process))

    def stop(self) -> float:
        """End; the peak in MB, NaN where it cannot be known."""
        self._ended.set()
        self.join()
        return self._peak or float("nan")


def anonymous_mb(process: int | str = "self") -> float:
    """`RssAnon` of a process now, in MB; 0 when it is gone or the system does not tell."""
    return status_mb("RssAnon", process)


def status_mb(field: str, process: int | str = "self") -> float:
    """A field of `/proc/PID/status` in MB; 0 when it is not there."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:")), 0.0)


def _children(process: int) -> list[int]:
    try:
        found = [int(n) for n in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []
    return found + [each for child in found for each in _children(child)]


def warm(folder: Path) -> None:
    """Read every byte once, so that nobody pays for a cold page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as handle:
                while handle.read(1 << 24):
                    pass


def copy_seconds(source: Path, scratch: Path, times: int = 2) -> float:
    """Seconds to copy a folder's bytes and have them on the disk: the median of several copies."""
    import shutil

    taken = []
    for _ in range(times):
        os.sync()
        begin = time.monotonic()
        shutil.copytree(source, scratch)
        for path in scratch.rglob("*"):
            if path.is_file():
                with path.open("rb") as handle:
                    os.fsync(handle.fileno())
        taken.append(time.monotonic() - begin)
        shutil.rmtree(scratch)
    return statistics.median(taken)
