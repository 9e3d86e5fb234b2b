"""Re-sharding a 4 GB checkpoint: ours beside diffusers' `save_pretrained` and `cp` of the same bytes.

    python -m tests.benchmarks.reshard_vs_diffusers [--source DIR] [--work DIR] [--rounds N]
                                                    [--dtype DTYPE ...] [--json FILE]

Every run is a process of its own (`tests.benchmarks.process`), in turn within each round, with the page
cache warmed before each by reading the checkpoint once; the median over the rounds is shown. Ours flushes
every file to disk before it gives it its name, and hashes source and result; neither `cp` nor diffusers does.
So two times are taken: until the process ends, and until its files are on the disk (for ours they are the
same). Verification is off on our side, for the others have none. float8 has no other side: diffusers
stores no such files.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.process import Measured, measure, warm

SHARD = "1GB"
COPY_GOAL = 1.5
"""Of `cp`'s time, byte for byte."""
MEMORY_GOAL_MB = 1000 * 1000 * 1000 / 2**20
DTYPES = ("stored", "bfloat16", "float16", "float8_e4m3fn")
THEIRS = """
import sys, torch
from diffusers import DiffusionPipeline
source, output, shard, dtype = sys.argv[1:]
pipeline = DiffusionPipeline.from_pretrained(source, torch_dtype=getattr(torch, dtype), local_files_only=True)
pipeline.save_pretrained(output, max_shard_size=shard)
"""


@dataclass(frozen=True)
class Run:
    """A process, and the seconds until its files were on the disk."""

    measured: Measured
    on_disk: float


def own_command(source: Path, output: Path, dtype: str) -> list[str]:
    command = [sys.executable, "-m", "exporter", "convert", str(source), "--to", "safetensors"]
    cast = [] if dtype == "stored" else ["--dtype", dtype]
    return [*command, "--max-shard-size", SHARD, "--no-verify", "-o", str(output), *cast]


def their_command(source: Path, output: Path, dtype: str) -> list[str]:
    wanted = "float32" if dtype == "stored" else dtype
    return [sys.executable, "-c", THEIRS, str(source), str(output), SHARD, wanted]


def timed(what: str, command: list[str], source: Path, output: Path) -> Run:
    """Run a command with a warm cache, then flush what it wrote; the output is removed afterwards."""
    warm(source)
    found = measure(what, command, output)
    begin = time.monotonic()
    for path in output.rglob("*") if output.is_dir() else ():
        if path.is_file():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
    flushed = time.monotonic() - begin
    shutil.rmtree(output, ignore_errors=True)
    return Run(found, found.seconds + flushed)


def compare(source: Path, work: Path, dtypes: list[str], rounds: int) -> dict[str, list[Run]]:
    """Every competitor once a round, in turn."""
    runs: dict[str, list[Run]] = {}
    for _ in range(rounds):
        todo = {"cp": ["/bin/cp", "-r", str(source), str(work / "cp")]}
        for dtype in dtypes:
            todo[f"exporter {dtype}"] = own_command(source, work / f"ours-{dtype}", dtype)
            if dtype != "float8_e4m3fn":
                todo[f"diffusers {dtype}"] = their_command(source, work / f"theirs-{dtype}", dtype)
        for what, command in todo.items():
            output = Path(command[command.index("-o") + 1]) if "-o" in command else work / (
                "cp" if what == "cp" else f"theirs-{what.split()[1]}"
            )  # fmt: skip
            runs.setdefault(what, []).append(timed(what, command, source, output))
    return runs


def middle(runs: list[Run]) -> Run:
    """The median of each figure; the worst exit code."""
    first = runs[0].measured
    numbers = {
        name: statistics.median(getattr(run.measured, name) for run in runs)
        for name in ("seconds", "cpu_seconds", "peak_mb", "anonymous_mb", "written_mb")
    }
    code = max((run.measured.code for run in runs), key=abs)
    return Run(Measured(first.what, **numbers, code=code), statistics.median(run.on_disk for run in runs))


def show(runs: dict[str, Run]) -> dict[str, Any]:
    """A table, ratios and whether the goals are met. NaN meets none."""
    print(
        f"{'':26}{'seconds':>9}{'on disk':>9}{'cpu s':>8}{'peak MB':>9}{'anon MB':>9}{'written MB':>12}"
        f"{'exit':>6}{'of cp':>8}{'on disk':>9}"
    )
    copy = runs["cp"]
    ratios = {}
    for what, run in runs.items():
        m = run.measured
        ratios[what] = (m.seconds / copy.measured.seconds, run.on_disk / copy.on_disk)
        print(
            f"{what:26}{m.seconds:9.2f}{run.on_disk:9.2f}{m.cpu_seconds:8.2f}{m.peak_mb:9.0f}{m.anonymous_mb:9.0f}"
            f"{m.written_mb:12.0f}{m.code:6}{ratios[what][0]:8.2f}{ratios[what][1]:9.2f}"
        )
    goals = {}
    if "exporter stored" in runs:
        goals["time, on disk"] = (ratios["exporter stored"][1], COPY_GOAL)
        goals["time, cp not flushed"] = (ratios["exporter stored"][0], COPY_GOAL)
    peak = max(run.measured.peak_mb for what, run in runs.items() if what.startswith("exporter"))
    goals["peak memory of all of ours, MB"] = (peak, MEMORY_GOAL_MB)
    for what, (value, goal) in goals.items():
        print(f"{what}: {value:.2f}, goal {goal:.2f}: {'met' if value <= goal else 'missed'}")
    return {"ratios": ratios, "goals": goals}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source", type=Path, help="a checkpoint folder; default: a random SD 1.5, made first"
    )
    parser.add_argument("--work", type=Path, help="where to write (needs 10 GB); default: a temporary folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    if given.work is not None:
        given.work.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="reshard-", dir=given.work))
    try:
        source = given.source
        if source is None:
            from tests.benchmarks.full_size import make_full_size

            source = make_full_size(work / "sd15")
        every = compare(source, work, given.dtype, given.rounds)
        medians = {what: middle(runs) for what, runs in every.items()}
        result = show(medians)
        if given.json:
            result |= {"runs": {what: [asdict(run) for run in runs] for what, runs in every.items()}}
            given.json.write_text(json.dumps(result, indent=2) + "\n")
        return int(any(run.measured.code for run in medians.values()))
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    raise SystemExit(main())
