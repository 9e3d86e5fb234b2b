"""Batches on this machine: failures, memory, lost workers, Ctrl-C, and taking up what was stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from exporter import batch
from exporter.artifact import Artifact
from exporter.batch import Row
from tests.batch.matrices import SIZES, attempts, write
from tests.cli.runner import environment, invoke, spawn

pytest.importorskip("onnx")
CELLS = [f"t-r-{size}" for size in SIZES]


def hidden(out: Path) -> list[str]:
    """Staging folders and locks that were left."""
    return [p.name for p in out.iterdir() if p.name.startswith(".") and p.name != ".batch"]


def test_a_failing_cell_does_not_stop_the_others_and_nothing_is_done_twice(
    tiny: Path, tmp_path: Path
) -> None:
    matrix, out = write(tmp_path, tiny, ("1x64x64", "1x64x63", "1x128x64")), tmp_path / "out"
    ran = spawn("batch", matrix, "-o", out, "--jobs", 2, "--json")
    assert ran.code == 2, ran
    rows = {row["id"]: row for row in ran.document["rows"]}
    assert [row["state"] for row in rows.values()] == ["done", "failed", "done"]
    assert "multiples of 8" in rows["t-r-1x64x63"]["error"]["message"]
    for name in ("t-r-1x64x64", "t-r-1x128x64"):
        assert Artifact.open(out / name).changed_files() == []
        assert attempts(out, name) == ["begun", "done"]
    page = (out / "index.html").read_text()
    assert all(name in page for name in rows) and "multiples of 8" in page
    assert hidden(out) == []

    again = spawn("batch", matrix, "-o", out, "--jobs", 2, "--json")
    assert again.code == 2
    assert [row["state"] for row in again.document["rows"]] == ["kept", "failed", "kept"]
    assert attempts(out, "t-r-1x64x64") == ["begun", "done"], "it was done twice"
    assert again.document["rows"][0]["seconds"] == rows["t-r-1x64x64"]["seconds"]


def test_verdicts_reports_and_the_page(tiny: Path, tmp_path: Path) -> None:
    matrix, out = write(tmp_path, tiny, SIZES[:1], more="set: {verify.enabled: true}\n"), tmp_path / "out"
    ran = spawn("batch", matrix, "-o", out, "--json")
    (row,) = ran.document["rows"]
    assert ran.code == 0 and row["verdict"] == "PASS", ran
    assert (out / row["report"]).is_file() and row["report"].endswith("verification/report.html")
    assert f'href="{row["report"]}"' in (out / "index.html").read_text()
    assert json.loads((out / "batch.json").read_text())["rows"][0]["verdict"] == "PASS"


class Watch(batch.NoWatcher):
    """Notes what happens; kills the worker of a cell where told to."""

    def __init__(self, kill: str = "", times: int = 0) -> None:
        self.kill, self.times = kill, times
        self.running: set[str] = set()
        self.most = 0
        self.events: list[tuple[str, str]] = []

    def started(self, row: Row) -> None:
        self.running.add(row.id)
        self.most = max(self.most, len(self.running))
        self.events.append(("started", row.id))

    def working(self, row: Row, what: str) -> None:
        if row.id == self.kill and self.times:
            # What a killed worker had said before is told after its death too.
            children = [c for c in psutil.Process().children() if c.status() != psutil.STATUS_ZOMBIE]
            workers = [c for c in children if "exporter.batch.worker" in c.cmdline()]
            assert len(workers) <= 1
            for worker in workers:
                self.times -= 1
                worker.kill()

    def again(self, row: Row, why: str) -> None:
        self.running.discard(row.id)
        self.events.append(("again", row.id))
        assert "SIGKILL" in why

    def ended(self, row: Row) -> None:
        self.running.discard(row.id)


@pytest.mark.full
def test_cells_that_do_not_fit_together_run_one_after_the_other(tiny: Path, tmp_path: Path) -> None:
    matrix, out = write(tmp_path, tiny, SIZES[:2]), tmp_path / "out"
    need = max(row.memory for row in batch.check(matrix, out).rows)
    watch = Watch()
    summary = batch.run(matrix, out, slots=2, memory=int(need * 1.5), watcher=watch)
    assert summary.exit_code == 0 and watch.most == 1
    together = Watch()
    summary = batch.run(matrix, tmp_path / "both", slots=2, memory=need * 2, watcher=together)
    assert summary.exit_code == 0 and together.most == 2


def test_a_cell_that_never_fits_is_refused_before_work(tiny: Path, tmp_path: Path) -> None:
    matrix, out = write(tmp_path, tiny, SIZES[:1]), tmp_path / "out"
    ran = invoke("batch", matrix, "-o", out, "--memory", "1MB", "--json")
    assert ran.code == 6
    (row,) = ran.document["rows"]
    assert "Not enough memory" in row["error"]["message"] and row["attempts"] == 0
    assert not (out / ".batch" / "t-r-1x64x64.attempts").exists()


def test_a_lost_worker_is_begun_again_and_not_for_ever(tiny: Path, tmp_path: Path) -> None:
    matrix = write(tmp_path, tiny, SIZES[:1])
    watch = Watch(kill=CELLS[0], times=1)
    summary = batch.run(matrix, tmp_path / "once", slots=1, retries=1, watcher=watch)
    assert summary.exit_code == 0 and ("again", CELLS[0]) in watch.events
    assert attempts(tmp_path / "once", CELLS[0]) == ["begun", "begun", "done"]
    assert summary.rows[0].attempts == 2 and hidden(tmp_path / "once") == []
    summary = batch.run(matrix, tmp_path / "ever", slots=1, retries=1, watcher=Watch(CELLS[0], 9))
    assert summary.exit_code == 6 and summary.rows[0].error is not None
    assert "lost 2 times" in summary.rows[0].error.message


def heed_ctrl_c() -> None:
    """A run in the background of a script ignores the signal, and its children would too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.full), signal.SIGKILL])
def test_a_batch_that_is_stopped_goes_on(tiny: Path, tmp_path: Path, number: signal.Signals) -> None:
    matrix, out = write(tmp_path, tiny), tmp_path / "out"
    command = [sys.executable, "-m", "exporter", "batch", str(matrix), "-o", str(out), "--jobs", "1"]
    child = subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True, preexec_fn=heed_ctrl_c,
    )  # fmt: skip
    workers: list[psutil.Process] = []
    for _ in range(1200):
        if len(list((out / ".batch").glob("*.attempts"))) == 2:  # one is done, the second at work
            workers = psutil.Process(child.pid).children(recursive=True)
            break
        assert child.poll() is None, "it ended before it was stopped"
        time.sleep(0.1)
    os.kill(child.pid, number)
    code = child.wait(60)
    assert code == (130 if number == signal.SIGINT else -signal.SIGKILL)
    psutil.wait_procs(workers, timeout=20)
    assert not [p for p in workers if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    complete = [name for name in CELLS if (out / name).is_dir()]
    assert 1 <= len(complete) < len(CELLS)
    for name in complete:
        assert Artifact.open(out / name).changed_files() == []
    json.loads((out / "batch.json").read_text())
    if number == signal.SIGINT:
        assert hidden(out) == []

    ran = spawn("batch", matrix, "-o", out, "--json")
    assert ran.code == 0, ran
    states = {row["id"]: row["state"] for row in ran.document["rows"]}
    assert states == {name: "kept" if name in complete else "done" for name in CELLS}
    assert all(attempts(out, name).count("done") == 1 for name in CELLS)
    assert hidden(out) == []


def test_destinations_that_are_refused(tiny: Path, tmp_path: Path) -> None:
    matrix = write(tmp_path, tiny, SIZES[:1])
    (tmp_path / "file").write_text("x")
    invoke("batch", matrix, "-o", tmp_path / "file").failed(2, "is not a folder")
    invoke("batch", matrix, "-o", tmp_path / "file" / "below").failed(2, "cannot be written")
    other = tmp_path / "other"
    other.mkdir()
    (other / "index.html").write_text("mine")
    invoke("batch", matrix, "-o", other).failed(2, "was not made by `exporter batch`")
    assert (other / "index.html").read_text() == "mine"


def test_an_artifact_that_was_made_otherwise_is_left_alone(tiny: Path, tmp_path: Path) -> None:
    matrix, out = write(tmp_path, tiny, SIZES[:1]), tmp_path / "out"
    assert batch.run(matrix, out).exit_code == 0
    before = (out / CELLS[0] / "exporter.json").read_bytes()
    write(tmp_path, tiny, SIZES[:1], more="set: {options.dtype: float16}\n")
    summary = batch.run(matrix, out)
    assert summary.exit_code == 3 and summary.rows[0].error is not None
    assert "was made otherwise" in summary.rows[0].error.message
    assert (out / CELLS[0] / "exporter.json").read_bytes() == before
