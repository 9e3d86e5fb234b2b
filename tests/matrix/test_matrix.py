"""The table of families and formats is what the results file says, and the results are of this code."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.targets import get_target
from tests.matrix.__main__ import main, wanted
from tests.matrix.cells import families, run
from tests.matrix.results import BEGIN, END, NOT_RUN, README, TARGETS, Result, Results, table, with_table


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
    arguments = ["--only", "ddpm/coreml", "--results", str(results)]
    assert main(arguments) == 0
    kept = Results.read(results).get("ddpm", "coreml")
    assert kept is not None and kept.verdict == "refused" and "unet" in kept.reason
    assert main(arguments) == 0
    assert "0 of 1 cells to run" in capsys.readouterr().out
    main([*arguments, "--list"])
    assert capsys.readouterr().out.startswith("ddpm/coreml\trefused\t")


@pytest.mark.full
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("family", families())
def test_the_result_is_as_it_was(family: str, target: str, tmp_path: Path) -> None:
    result = run(family, target, tmp_path)
    known = Results.read().get(family, target)
    assert result.verdict != "fails", result.reason
    assert known is None or result.verdict == known.verdict, result.reason
