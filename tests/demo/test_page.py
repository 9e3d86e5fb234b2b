"""The page and the verdict for every kind of outcome; rows are made up, so these are quick."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from exporter import demo
from exporter.demo import DemoResult
from exporter.demo.page import Page, count, decibel, enumerate_words, seconds, shown_path, write_page
from exporter.demo.pictures import compare
from exporter.demo.prompts import OTHERS, choose_prompts
from exporter.demo.rows import ComponentRow, Painted, Row, missing_row
from exporter.errors import (
    BackendMissing,
    DestinationError,
    UnsupportedError,
    UsageError,
    VerificationFailed,
    VerificationInconclusive,
)
from tests import browser
from tests.demo.pages import read

NASTY = "a <script>alert(\"x\")</script> & 'star' on a <b>red</b> background"
PROMPTS = [NASTY, "a circle", "a ring", "a square"]


def picture(level: int) -> Image.Image:
    return Image.new("RGB", (16, 16), (level, 90, 200))


def row(status: str, title: str, folder: Path, *, level: int = 101) -> Row:
    pictures = [picture(level) for _ in PROMPTS]
    return Row(
        target=title.lower(),
        title=title,
        status=status,  # type: ignore[arg-type]
        summary=f"the sentence about {title}.",
        folder=folder / title.lower(),
        report=folder / title.lower() / "verification" / "report.html",
        dtype="float32",
        bytes=13_700_000,
        export_seconds=4.21,
        verify_seconds=63.4,
        painted=Painted(pictures, 0.5, 0.123),
        components=[ComponentRow("unet", 5_400_000, 21_600_000, 3.3, status)],
        comparisons=[compare(p, picture(100)) for p in pictures],
    )


def stopped(folder: Path, error: Exception) -> Row:
    return Row("beta", "Beta", "ERROR", "the unet has no route.", folder=folder / "beta", error=error)


MISSING = Row("gamma", "Gamma", "MISSING", "gammatools is not installed here.", install='pip install "g[x]"')


def outcome(folder: Path, *rows: Row, source: str) -> DemoResult:
    return DemoResult(
        page=folder / "index.html",
        rows=list(rows),
        source=source,
        seconds=99.0,
        prompts=PROMPTS,
        reference=Painted([picture(100) for _ in PROMPTS], 0.4, 1.5),
    )


def written(folder: Path, *rows: Row, source: Path) -> str:
    result = outcome(folder, *rows, source=str(source))
    write_page(Page(result, folder, "four prompts"))
    return result.page.read_text(encoding="utf-8")


def test_every_status_is_said_in_words(tmp_path: Path, tiny: Path) -> None:
    html = written(
        tmp_path,
        row("PASS", "Alpha", tmp_path),
        row("FAIL", "Delta", tmp_path),
        row("INCONCLUSIVE", "Zeta", tmp_path),
        stopped(tmp_path, UnsupportedError("the unet has no route.")),
        MISSING,
        source=tiny,
    )
    text = read(html).text
    for words in ("Alpha float32 ✓PASS", "Delta float32 ✕FAIL", "Zeta float32 ?INCONCLUSIVE"):
        assert words in text
    assert "Beta !NOT MADE" in text and "The unet has no route." in text
    assert "Gamma –NOT INSTALLED" in text and 'pip install "g[x]"' in text
    assert "1 of 4 artifacts passed" in text
    assert "Delta does not compute what PyTorch computes." in text


def test_numbers_are_for_people(tmp_path: Path, tiny: Path) -> None:
    text = read(written(tmp_path, row("PASS", "Alpha", tmp_path), source=tiny)).text
    for words in ("13.7 MB", "4.21 s", "63.4 s", "0.12 s", "52.9 dB", "max 1/255", "5.4 M parameters"):
        assert words in text
    same = read(written(tmp_path, row("PASS", "Alpha", tmp_path, level=100), source=tiny)).text
    assert "identical" in same and "dB" not in same.replace("PSNR", "")


def test_prompts_are_text_and_never_markup(tmp_path: Path, tiny: Path) -> None:
    html = written(tmp_path, row("PASS", "Alpha", tmp_path), source=tiny)
    page = read(html)
    assert NASTY in page.text
    assert all(element.tag != "script" for element in page.elements)
    assert any(NASTY in alt for alt, _ in page.images)
    assert not [e for e in page.elements if any(name.startswith("on") for name in e.attributes)]


def test_reports_are_linked_from_the_page(tmp_path: Path, tiny: Path) -> None:
    page = read(
        written(tmp_path, row("PASS", "Alpha", tmp_path), row("FAIL", "Del ta", tmp_path), source=tiny)
    )
    links = [e.attributes["href"] for e in page.elements if e.tag == "a"]
    assert links == ["alpha/verification/report.html", "del%20ta/verification/report.html"]


@pytest.mark.parametrize(
    ("statuses", "sentence"),
    [
        (["PASS"], "Alpha0 paints what PyTorch paints."),
        (["PASS"] * 3, "Alpha0, Alpha1 and Alpha2 paint what PyTorch paints."),
        (["PASS", "FAIL", "FAIL"], "Alpha1 and Alpha2 do not compute what PyTorch computes."),
        (["PASS", "INCONCLUSIVE"], "Alpha1 could not be judged here."),
        (["FAIL", "INCONCLUSIVE"], "Alpha0 does not compute what PyTorch computes."),
    ],
)
def test_headline_names_the_worst(tmp_path: Path, statuses: list[str], sentence: str) -> None:
    rows = [row(status, f"Alpha{index}", tmp_path) for index, status in enumerate(statuses)]
    assert Page(outcome(tmp_path, *rows, source="x"), tmp_path, "").headline == sentence


def test_verdict_of_the_whole(tmp_path: Path) -> None:
    good, bad, unsure = (row(s, s, tmp_path) for s in ("PASS", "FAIL", "INCONCLUSIVE"))
    wrong = stopped(tmp_path, UnsupportedError("no route"))

    def result(*rows: Row) -> DemoResult:
        return outcome(tmp_path, *rows, source="x")

    assert result(good, MISSING).ok
    result(good, MISSING).raise_for_verdict()
    for rows, kind in (
        ((good, bad, unsure, wrong), VerificationFailed),
        ((good, unsure, wrong), UnsupportedError),
        ((good, unsure), VerificationInconclusive),
        ((MISSING,), VerificationInconclusive),
        ((), VerificationInconclusive),
    ):
        assert not result(*rows).ok
        with pytest.raises(kind):
            result(*rows).raise_for_verdict()


@pytest.mark.parametrize(("status", "code"), [("PASS", 0), ("FAIL", 1), ("INCONCLUSIVE", 5), ("ERROR", 3)])
def test_exit_code_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str, code: int
) -> None:
    """The work itself is replaced here: only what the command makes of its outcome is asked."""
    from exporter.cli import cli

    made = (
        stopped(tmp_path, UnsupportedError("no route")) if status == "ERROR" else row(status, "A", tmp_path)
    )
    result = outcome(tmp_path, made, MISSING, source="builtin:shapes")
    monkeypatch.setattr(demo, "run", lambda *args, **options: result)
    called = CliRunner().invoke(cli, ["--json", "demo", "-o", str(tmp_path)])
    assert called.exit_code == code
    document = json.loads(called.stdout)
    assert document["page"] == str(result.page)
    assert [entry["status"] for entry in document["rows"]] == [status, "MISSING"]
    shown = CliRunner().invoke(cli, ["demo", "-o", str(tmp_path)])
    assert shown.exit_code == code
    lines = shown.stdout.splitlines()
    assert lines[-1] == f"The page: {result.page}"
    assert any(made.title in line and status in line for line in lines)
    assert any("Gamma" in line and 'pip install "g[x]"' in line for line in lines)
    assert ("no route" in shown.stderr) == (status == "ERROR")


def test_missing_backend_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    gone = {"openvino"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in gone else real(name, *rest)
    )
    found = missing_row("openvino")
    assert found is not None and found.status == "MISSING"
    assert found.install == 'pip install "exporter[openvino]"' and "openvino" in found.summary
    names, absent = demo._select(None)
    assert "openvino" not in names and [r.target for r in absent] == ["openvino"]
    with pytest.raises(BackendMissing):
        demo._select(["openvino"])


def test_bad_requests_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no-such-target"):
        demo.run(tmp_path / "out", targets=["no-such-target"])
    with pytest.raises(UsageError, match="at least one step"):
        demo.run(tmp_path / "out", steps=0)
    (tmp_path / "file").write_text("here")
    with pytest.raises(DestinationError, match="cannot be written"):
        demo.run(tmp_path / "file")
    assert not (tmp_path / "out").exists()


def test_embedded_prompts_were_never_trained_on() -> None:
    from exporter.builtin.prompts import all_scenes, held_out

    prompts, _ = choose_prompts("builtin:shapes")
    scenes = {scene.prompt: scene for scene in all_scenes()}
    chosen = [scenes[prompt] for prompt in prompts]
    assert len(chosen) == 4 and all(scene in held_out() for scene in chosen)
    for name in ("shape", "colour", "place", "background"):
        assert len({getattr(scene, name) for scene in chosen}) == 4
    assert choose_prompts("some/folder")[0] == list(OTHERS)


def test_formatting() -> None:
    assert [seconds(s) for s in (None, math.nan, 0.4249, 12.34, 119.96, 185)] == [
        "–", "–", "0.42 s", "12.3 s", "120.0 s", "3 min 5 s",
    ]  # fmt: skip
    assert [decibel(d) for d in (None, math.inf, -math.inf, math.nan, 62.13)] == [
        "–", "identical", "not comparable", "not comparable", "62.1 dB",
    ]  # fmt: skip
    assert [count(n) for n in (12, 12_300, 6_600_000, 860_000_000, 1.2e9)] == [
        "12", "12.3 k", "6.6 M", "860 M", "1.2 G",
    ]  # fmt: skip
    assert [enumerate_words(w) for w in ([], ["a"], ["a", "b"])] == ["", "a", "a and b"]


def test_paths_are_shown_as_they_are_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown_path(tmp_path / "artifacts" / "demo") == "artifacts/demo"
    assert shown_path(Path("/elsewhere/demo")) == "/elsewhere/demo"


@pytest.mark.parametrize("width", [400, 1600])
def test_nothing_is_wider_than_the_window(tmp_path: Path, tiny: Path, width: int) -> None:
    """The real layout, measured from outside: browsers refuse windows as narrow as a telephone."""
    rows = [row("PASS", title, tmp_path) for title in ("Alpha", "Delta", "A format with a long name", "Zeta")]
    html = written(tmp_path, *rows, MISSING, source=tiny)
    framed = tmp_path / "framed.html"
    framed.write_text(html, encoding="utf-8")
    outer = tmp_path / "outer.html"
    outer.write_text(
        f'<!doctype html><link rel="icon" href="data:,"><iframe src="framed.html" width="{width}"></iframe>'
        "<script>onload = () => { const page = frames[0].document.documentElement;"
        'document.body.dataset.widths = page.scrollWidth + " " + frames[0].innerWidth }</script>'
    )
    visit = browser.visit(outer, width=width + 100)
    found = re.search(r'data-widths="(\d+) (\d+)"', visit.dom)
    assert found is not None
    content, window = map(int, found.groups())
    assert window == width
    assert content <= window
