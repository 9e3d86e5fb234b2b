"""`python -m tests.matrix [--jobs N] [--only FAMILY/TARGET …] [--again] [--readme] [--list]`.

Cells that have a result are left alone, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path

from tests.matrix.results import FILE, README, TARGETS, Result, Results, table, with_table

ROOT = Path(__file__).parents[2]
TIMEOUT = 900


def main(arguments: list[str] | None = None) -> int:
    """Run cells and write their results as they come; the exit status is 1 where one fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time (2 GB and a core each)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATTERN",
        help="FAMILY, TARGET or FAMILY/TARGET, with * and ?; may be given more than once",
    )  # fmt: skip
    parser.add_argument("--again", action="store_true", help="also cells that have a result")
    parser.add_argument("--failed", action="store_true", help="also cells that fail")
    parser.add_argument("--results", type=Path, default=FILE, help="the results file")
    parser.add_argument("--readme", action="store_true", help="write the table into the README, run nothing")
    parser.add_argument("--list", action="store_true", help="list the cells, run nothing")
    given = parser.parse_args(arguments)
    from tests.matrix.cells import families

    names = list(families())
    results = Results.read(given.results)
    if given.readme:
        write_readme(results, names)
        return 0
    cells = [(f, t) for f in names for t in TARGETS if wanted(f, t, given.only)]
    if given.list:
        for family, target in cells:
            found = results.get(family, target)
            print(
                f"{family}/{target}\t{found.verdict if found else 'not run'}\t{found.reason if found else ''}"
            )
        return 0
    waiting = [
        cell for cell in cells
        if given.again or (old := results.get(*cell)) is None or (given.failed and old.verdict == "fails")
    ]  # fmt: skip
    print(f"{len(waiting)} of {len(cells)} cells to run", flush=True)
    failed = 0
    with ThreadPoolExecutor(given.jobs) as pool:
        jobs = {
            pool.submit(in_process, family, target, given.jobs): (family, target)
            for family, target in waiting
        }
        for number, job in enumerate(as_completed(jobs), 1):
            family, target = jobs[job]
            result = job.result()
            results = Results.read(given.results)  # another run may have written it
            results.put(family, target, result)
            results.write(given.results)
            failed += result.verdict == "fails"
            told = f"[{number}/{len(waiting)}] {family}/{target}: {result.verdict} ({result.seconds:.0f} s)"
            print(f"{told} {result.reason}".rstrip(), flush=True)
    if given.results == FILE:
        write_readme(results, names)
    return 1 if failed else 0


def wanted(family: str, target: str, patterns: list[str]) -> bool:
    """Whether a cell is asked for; all are where nothing is said."""
    names = (family, target, f"{family}/{target}")
    return not patterns or any(fnmatch(name, pattern) for pattern in patterns for name in names)


def in_process(family: str, target: str, jobs: int) -> Result:
    """One cell in a process of its own: native libraries can end it, and it may hang."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = os.environ | {
        "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.matrix.cells", family, target]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return _stopped(target, f"stopped after {TIMEOUT} s")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1][:300]
        return _stopped(target, f"the process ended with status {done.returncode}: {last}")
    return Result.model_validate_json(done.stdout.strip().splitlines()[-1])


def _stopped(target: str, reason: str) -> Result:
    from tests.matrix.cells import versions

    return Result(
        verdict="fails", reason=reason, date=datetime.now(UTC).date().isoformat(), tools=versions(target)
    )


def write_readme(results: Results, families: list[str]) -> None:
    """Bring the table in the README up to date."""
    README.write_text(
        with_table(README.read_text(encoding="utf-8"), table(results, families)), encoding="utf-8"
    )


if __name__ == "__main__":
    sys.exit(main())
