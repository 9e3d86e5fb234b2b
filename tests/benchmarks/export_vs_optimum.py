"""Our export against optimum-cli's: one checkpoint, one machine, in turn.

    python -m tests.benchmarks.export_vs_optimum [--to onnx|openvino|both] [--source DIR] [--work DIR]

Each side is a process of its own; time is wall time from start to exit, memory is the kernel's count of the
peak resident set (`ru_maxrss`). The page cache is warmed before each side by reading the checkpoint once.
For the limit, the same bytes are copied on the same disk. Verification is off on our side, as optimum-cli's
OpenVINO export has none; its ONNX export validates at the traced shape, which cannot be turned off.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

GOALS = {"onnx": (1 / 3, 1 / 10), "openvino": (0.6, 1 / 2)}
"""Target → the elapsed time and the peak memory to stay below, as parts of optimum's."""


@dataclass(frozen=True)
class Measured:
    """One run: wall seconds, peak resident MB, MB written, exit code."""

    what: str
    seconds: float
    peak_mb: float
    written_mb: float
    code: int


def measure(what: str, command: list[str], output: Path) -> Measured:
    """Run a command to its end and read its peak memory from the kernel."""
    begin = time.monotonic()
    log = output.with_suffix(".log")
    with log.open("wb") as sink:
        actions = [(os.POSIX_SPAWN_DUP2, sink.fileno(), 1), (os.POSIX_SPAWN_DUP2, sink.fileno(), 2)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        child = os.posix_spawn(command[0], command, environment, file_actions=actions)
        _, status, usage = os.wait4(child, 0)
    seconds = time.monotonic() - begin
    size = sum(f.stat().st_size for f in output.rglob("*") if f.is_file()) if output.is_dir() else 0
    result = Measured(what, seconds, usage.ru_maxrss / 1024, size / 2**20, os.waitstatus_to_exitcode(status))
    if result.code:
        print(log.read_text(errors="replace")[-2000:], file=sys.stderr)
    return result


def warm(folder: Path) -> None:
    """Read every byte once, so that neither side pays for a cold cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as handle:
                while handle.read(1 << 24):
                    pass


def copy_time(source: Path, scratch: Path) -> float:
    """Seconds to copy a folder's bytes and have them on the disk."""
    begin = time.monotonic()
    shutil.copytree(source, scratch)
    for path in scratch.rglob("*"):
        if path.is_file():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
    seconds = time.monotonic() - begin
    shutil.rmtree(scratch)
    return seconds


def commands(target: str, source: Path, ours: Path, theirs: Path) -> tuple[list[str], list[str]]:
    """Ours and optimum's, each writing its default: ONNX in float32, OpenVINO with float16 weights."""
    binaries = Path(sys.executable).parent
    own = [
        sys.executable,
        "-m",
        "exporter",
        "convert",
        str(source),
        "--to",
        target,
        "-o",
        str(ours),
        "--no-verify",
    ]
    other = [
        str(binaries / "optimum-cli"),
        "export",
        target,
        "--model",
        str(source),
        "--task",
        "text-to-image",
    ]
    if target == "openvino":
        own += ["--dtype", "float16"]
        other += ["--weight-format", "fp16"]
    return own, [*other, str(theirs)]


def compare(target: str, source: Path, work: Path, *, keep: bool) -> dict[str, object]:
    """Both sides, optimum second, and the copy of what we wrote."""
    ours, theirs = work / f"ours-{target}", work / f"optimum-{target}"
    own, other = commands(target, source, ours, theirs)
    warm(source)
    first = measure("exporter", own, ours)
    copied = copy_time(ours, work / "copy") if ours.is_dir() else float("nan")
    warm(source)
    second = measure("optimum-cli", other, theirs)
    if not keep:
        for folder in (ours, theirs):
            shutil.rmtree(folder, ignore_errors=True)
    time_ratio, memory_ratio = first.seconds / second.seconds, first.peak_mb / second.peak_mb
    goal_time, goal_memory = GOALS[target]
    print(f"\n{target}: {source.name}")
    print(f"{'':14}{'seconds':>10}{'peak MB':>10}{'written MB':>12}{'exit':>6}")
    for run in (first, second):
        print(f"{run.what:14}{run.seconds:10.1f}{run.peak_mb:10.0f}{run.written_mb:12.0f}{run.code:6}")
    print(f"{'copy':14}{copied:10.1f}")
    met = ["missed", "met"]
    print(f"time   {time_ratio:.3f} of optimum's, goal {goal_time:.3f}: {met[time_ratio <= goal_time]}")
    print(
        f"memory {memory_ratio:.3f} of optimum's, goal {goal_memory:.3f}: {met[memory_ratio <= goal_memory]}"
    )
    return {
        "target": target, "exporter": asdict(first), "optimum": asdict(second), "copy_seconds": copied,
        "time_ratio": time_ratio, "memory_ratio": memory_ratio,
        "goals": {"time": goal_time, "memory": goal_memory},
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", choices=[*GOALS, "both"], default="both")
    parser.add_argument(
        "--source", type=Path, help="a checkpoint folder; default: a random SD 1.5, made first"
    )
    parser.add_argument("--work", type=Path, help="where to write (needs 15 GB); default: a temporary folder")
    parser.add_argument("--keep", action="store_true", help="keep what was written")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="export-vs-optimum-", dir=given.work))
    try:
        source = given.source
        if source is None:
            from tests.benchmarks.full_size import make_full_size

            source = make_full_size(work / "sd15")
        targets = list(GOALS) if given.to == "both" else [given.to]
        results = [compare(target, source, work, keep=given.keep) for target in targets]
        if given.json:
            given.json.write_text(json.dumps(results, indent=2) + "\n")
        return int(any(run["exporter"]["code"] for run in results))  # type: ignore[index]
    finally:
        if not given.keep:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    raise SystemExit(main())
