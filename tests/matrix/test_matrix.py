"""The table of families and formats is what the results file says, and the results are of this code."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from exporter.targets import get_target
from exporter.verification import how_it_ended
from tests.matrix.__main__ import failed, in_process, main, take, wanted
from tests.matrix.cells import families
from tests.matrix.process import Ended, watched
from tests.matrix.results import (
    BEGIN,
    END,
    NOT_RUN,
    README,
    TARGETS,
    Result,
    Results,
    Verdict,
    table,
    with_table,
)


def test_the_readme_is_made_from_the_results() -> None:
    readme = README.read_text(encoding="utf-8")
    made = with_table(readme, table(Results.read(), list(families())))
    assert readme == made, "run `python -m tests.matrix --readme`"


def test_every_pair_has_a_result_or_is_said_not_to_be_run() -> None:
    text = README.read_text(encoding="utf-8")
    shown = text[text.index(BEGIN) : text.index(END)].splitlines()
    rows = {line.split("|")[1].strip(" `"): line.split("|")[2:-1] for line in shown if line.startswith("| `")}
    assert list(rows) == list(families())
    results = Results.read()
    assert set(results.cells) <= set(rows), "a result of a family that is gone"
    for family, cells in rows.items():
        assert len(cells) == len(TARGETS)
        for target, cell in zip(TARGETS, cells, strict=True):
            assert (cell.strip() == NOT_RUN) == (results.get(family, target) is None)


def test_the_columns_are_the_targets_there_are() -> None:
    from exporter.targets import target_names

    assert set(TARGETS) == set(target_names())
    assert all(get_target(name).name == name for name in ("onnx", "safetensors"))


def test_results_tell_reason_date_and_versions() -> None:
    for family, cells in Results.read().cells.items():
        for target, result in cells.items():
            where = f"{family}/{target}"
            assert result.date and result.tools["torch"] and result.tools["diffusers"], where
            assert (result.verdict == "supported") == (not result.reason), where
            if result.verdict == "refused":
                assert result.exit in (None, 2, 3), where
            assert "/tmp" not in result.reason and str(Path.home()) not in result.reason, where


def test_a_table_tells_what_is_refused_fails_or_was_not_run() -> None:
    tools = {"torch": "2"}
    results = Results()
    results.put("a", "onnx", Result(verdict="supported", date="2026-01-01", tools=tools))
    results.put("a", "coreml", Result(verdict="refused", reason="No place.", date="2026-01-02", tools=tools))
    results.put("b", "onnx", Result(verdict="fails", reason="It broke.", date="2026-01-02", tools=tools))
    results.put("b", "coreml", Result(verdict="refused", reason="No place.", date="2026-01-02", tools=tools))
    made = table(results, ["a", "b"]).splitlines()
    assert made[2].startswith("| `a` | yes | not run | no (1) |")
    assert made[3].startswith("| `b` | **fails** (2) | not run | no (1) |")
    assert "1 of 14 are supported, 10 were not run, run 2026-01-01 to 2026-01-02." in made
    assert made[-2:] == ["1. No place.", "2. It broke."]


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        ([], True),
        (["sd1"], True),
        (["onnx"], True),
        (["sd1/onnx"], True),
        (["sd*"], True),
        (["sdxl", "pt2"], False),
    ],
)
def test_patterns(patterns: list[str], found: bool) -> None:
    assert wanted("sd1", "onnx", patterns) is found


def test_a_cell_is_run_once_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.json"
    arguments = ["--only", "ddpm/coreml", "--results", str(results), "--logs", str(tmp_path)]
    assert main(arguments) == 0
    kept = Results.read(results).get("ddpm", "coreml")
    assert kept is not None and kept.verdict == "refused" and "unet" in kept.reason and kept.exit == 3
    assert main(arguments) == 0
    assert "0 of 1 cells to run" in capsys.readouterr().out
    main([*arguments, "--list"])
    assert capsys.readouterr().out.startswith("ddpm/coreml\trefused\t")


def test_results_of_another_machine_are_taken_but_its_failures(tmp_path: Path) -> None:
    def result(verdict: Verdict, reason: str = "") -> Result:
        return Result(verdict=verdict, reason=reason, date="2026-01-01", tools={"torch": "2"})

    mine, theirs = Results(), Results()
    mine.put("sd1", "onnx", result("supported"))
    theirs.put("sd1", "onnx", result("fails", "No library."))
    theirs.put("sd1", "pt2", result("supported"))
    theirs.put("sd2", "pt2", result("supported"))
    theirs.put("gone", "pt2", result("supported"))
    theirs.write(tmp_path / "theirs.json")
    main(["--take", str(tmp_path / "theirs.json"), "--results", str(tmp_path / "mine.json"), "--only", "sd1"])
    assert Results.read(tmp_path / "mine.json").cells == {"sd1": {"pt2": result("supported")}}
    assert take(mine, tmp_path / "theirs.json", ["sd1", "sd2"], []) == 2
    assert mine.get("sd1", "onnx") == result("supported") and "gone" not in mine.cells


def command(code: str, tmp_path: Path, *, seconds: float = 60, memory_mb: int = 2000) -> Ended:
    environment = {"PATH": os.environ["PATH"]}
    return watched(
        [sys.executable, "-c", code], tmp_path / "logs" / "one.log",
        folder=tmp_path, environment=environment, seconds=seconds, memory_mb=memory_mb,
    )  # fmt: skip


def test_a_crash_is_told_by_its_signal_and_leaves_its_log(tmp_path: Path) -> None:
    ended = command(
        "import os, sys; print('last words', file=sys.stderr, flush=True); os.kill(os.getpid(), 11)", tmp_path
    )
    assert ended.status == -signal.SIGSEGV and not ended.stopped
    words = (tmp_path / "logs" / "one.log").read_text()
    assert words == "last words\n"
    assert "Segmentation fault" in how_it_ended(ended.status, words)
    made = failed("onnx", ended.status, "the process stopped", ended.peak_mb)
    assert (made.verdict, made.exit) == ("fails", -11)


def test_a_command_that_hangs_or_grows_is_stopped_with_its_children(tmp_path: Path) -> None:
    code = "import subprocess as s, sys; s.run([sys.executable, '-c', {!r}])"
    hung = command(code.format("import time; time.sleep(600)"), tmp_path, seconds=1.5)
    assert hung.stopped == "stopped after 2 s" and hung.status == -signal.SIGKILL
    grown = command(
        code.format("import time; x = b'1' * 400_000_000; time.sleep(600)"), tmp_path, memory_mb=300
    )
    assert "over the limit of 300 MB" in grown.stopped and grown.peak_mb > 300
    ended = command("print('done')", tmp_path)
    assert (ended.status, ended.out.strip(), ended.stopped) == (0, "done", "")


@pytest.mark.full
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("family", families())
def test_the_result_is_as_it_was(family: str, target: str, tmp_path: Path) -> None:
    result = in_process(family, target, logs=tmp_path)
    known = Results.read().get(family, target)
    assert result.verdict != "fails", result.reason
    assert known is None or known.verdict in (result.verdict, "fails"), result.reason
