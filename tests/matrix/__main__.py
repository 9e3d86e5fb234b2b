"""`python -m tests.matrix [--jobs N] [--only FAMILY/TARGET …] [--again] [--readme] [--list]`.

Cells that have a result are left alone, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path

from exporter.verification import how_it_ended
from tests.matrix.process import kill_all, watched
from tests.matrix.results import FILE, README, TARGETS, Result, Results, table, with_table

ROOT = Path(__file__).parents[2]
SECONDS = 900
MEMORY_MB = 6000
STOPPED = 124
LOGS = ROOT / "artifacts" / "matrix"


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
    parser.add_argument("--seconds", type=float, default=SECONDS, help="limit of a cell")
    parser.add_argument("--memory", type=int, default=MEMORY_MB, help="its limit in MB")
    parser.add_argument("--logs", type=Path, default=LOGS, help="where the cells' logs go")
    parser.add_argument("--take", type=Path, metavar="FILE", help="take its results, run nothing")
    parser.add_argument("--readme", action="store_true", help="write the table into the README, run nothing")
    parser.add_argument("--list", action="store_true", help="list the cells, run nothing")
    given = parser.parse_args(arguments)
    from tests.matrix.cells import families

    names = list(families())
    results = Results.read(given.results)
    if given.readme:
        write_readme(results, names)
        return 0
    if given.take:
        taken = take(results, given.take, names, given.only)
        results.write(given.results)
        print(f"{taken} cells taken")
        if given.results == FILE:
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
            pool.submit(
                in_process, family, target, jobs=given.jobs, logs=given.logs,
                seconds=given.seconds, memory_mb=given.memory,
            ): (family, target)
            for family, target in waiting
        }  # fmt: skip
        try:
            for number, job in enumerate(as_completed(jobs), 1):
                family, target = jobs[job]
                result = job.result()
                results = Results.read(given.results)  # another run may have written it
                results.put(family, target, result)
                results.write(given.results)
                failed += result.verdict == "fails"
                told = (
                    f"[{number}/{len(waiting)}] {family}/{target}: {result.verdict} ({result.seconds:.0f} s)"
                )
                print(f"{told} {result.reason}".rstrip(), flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            kill_all()
            raise
    if given.results == FILE:
        write_readme(results, names)
    return 1 if failed else 0


def take(results: Results, other: Path, families: list[str], patterns: list[str]) -> int:
    """Take what another run found, of the cells that are asked for; failures are left there, for they may be
    that machine's: run those cells here."""
    found = Results.read(other)
    count = 0
    for family in families:
        for target in TARGETS:
            result = found.get(family, target)
            if result is None or result.verdict == "fails" or not wanted(family, target, patterns):
                continue
            if result != results.get(family, target):
                results.put(family, target, result)
                count += 1
    return count


def wanted(family: str, target: str, patterns: list[str]) -> bool:
    """Whether a cell is asked for; all are where nothing is said."""
    names = (family, target, f"{family}/{target}")
    return not patterns or any(fnmatch(name, pattern) for pattern in patterns for name in names)


def in_process(
    family: str,
    target: str,
    options: Mapping[str, str] | None = None,
    *,
    jobs: int = 1,
    logs: Path = LOGS,
    seconds: float = SECONDS,
    memory_mb: int = MEMORY_MB,
) -> Result:
    """One cell in a process of its own; a crash is a failure that names the signal, never a refusal."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // jobs))
    environment = os.environ | {
        "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.matrix.cells", family, target]
    command += [json.dumps(dict(options))] if options is not None else []
    name = "-".join((family, target, *(f"{k}-{v}" for k, v in (options or {}).items())))
    log = logs / f"{name}.log"
    ended = watched(command, log, folder=ROOT, environment=environment, seconds=seconds, memory_mb=memory_mb)
    if ended.stopped:
        return failed(target, STOPPED, ended.stopped, ended.peak_mb)
    if ended.status:
        words = log.read_text(encoding="utf-8", errors="replace")
        how = how_it_ended(ended.status, words)
        return failed(target, ended.status, f"the process stopped: {how}", ended.peak_mb)
    result = Result.model_validate_json(ended.out.strip().splitlines()[-1])
    return result.model_copy(update={"memory": ended.peak_mb})


def failed(target: str, status: int, reason: str, memory: int) -> Result:
    """Of a cell that gave no result."""
    from tests.matrix.cells import versions

    return Result(
        verdict="fails", reason=reason[:300], exit=status, memory=memory,
        date=datetime.now(UTC).date().isoformat(), tools=versions(target),
    )  # fmt: skip


def write_readme(results: Results, families: list[str]) -> None:
    """Bring the table in the README up to date."""
    README.write_text(
        with_table(README.read_text(encoding="utf-8"), table(results, families)), encoding="utf-8"
    )


if __name__ == "__main__":
    sys.exit(main())
