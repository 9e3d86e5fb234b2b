"""The real demo on the tiny checkpoint: converted, verified, painted, read back and opened in a browser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from exporter import demo
from exporter.artifact import Artifact
from exporter.demo.page import sentence
from exporter.demo.prompts import OTHERS
from tests import browser
from tests.demo.pages import read

TARGETS = ("onnx", "openvino")
STEPS = 2
QUICK = {"prompts": ["a ring"], "steps": 2, "samples": 1}


@pytest.fixture(scope="module")
def result(tiny: Path, tmp_path_factory: pytest.TempPathFactory, user_cache: Path) -> demo.DemoResult:
    output = tmp_path_factory.mktemp("demo") / "out"
    return demo.run(output, targets=TARGETS, source=str(tiny), steps=STEPS, verify_settings=QUICK)


def test_every_target_is_converted_verified_and_painted(result: demo.DemoResult) -> None:
    assert [row.target for row in result.rows] == list(TARGETS)
    for row in result.rows:
        assert row.status == "PASS", row.summary
        assert row.folder is not None and row.report is not None
        assert row.report.is_file() and row.report.suffix == ".html"
        assert Artifact.open(row.folder).verified(rehash=True) == "PASS"
        on_disk = sum(f.bytes for f in Artifact.open(row.folder).manifest.all_files())
        assert row.bytes == on_disk > 1_000_000
        assert row.export_seconds is not None and row.export_seconds > 0
        assert row.verify_seconds is not None and row.verify_seconds > 0
        assert row.painted is not None and row.painted.seconds > 0
        assert row.lowest_psnr is not None and row.lowest_psnr >= 40
    assert result.ok
    result.raise_for_verdict()


def test_page_stands_alone(result: demo.DemoResult) -> None:
    html = result.page.read_text(encoding="utf-8")
    page = read(html)
    for address in page.addresses:
        if not address.startswith("data:"):
            assert "://" not in address and not address.startswith(("/", "//", "\\"))
            assert (result.page.parent / address).is_file(), f"{address} is not there"
    assert {e.tag for e in page.elements}.isdisjoint({"script", "iframe", "object", "embed", "base"})
    assert "http://" not in html and "https://" not in html


def test_page_shows_every_picture_with_its_meaning(result: demo.DemoResult) -> None:
    images = read(result.page.read_text(encoding="utf-8")).images
    assert len(images) == 4 * (1 + 2 * len(TARGETS))
    alts = [alt for alt, _ in images]
    assert all(alts) and len(set(alts)) == len(alts) - 4 * len(TARGETS) + len(
        {alt for alt in alts if alt.startswith("Difference")}
    )
    shown = dict(images)
    assert result.reference is not None
    for index, prompt in enumerate(OTHERS):
        reference = np.asarray(result.reference.pictures[index])
        assert np.array_equal(np.asarray(shown[f"PyTorch: {prompt}"]), reference)
        for row in result.rows:
            assert row.painted is not None
            painted = np.asarray(row.painted.pictures[index])
            assert np.array_equal(np.asarray(shown[f"{row.title}: {prompt}"]), painted)
            assert np.abs(painted.astype(int) - reference).max() == row.comparisons[index].largest


def test_page_opens_in_a_browser_and_asks_for_nothing(result: demo.DemoResult) -> None:
    visit = browser.visit(result.page)
    assert visit.requests == ()
    seen = read(visit.dom)
    for row in result.rows:
        assert f"{row.title} float32 ✓PASS" in seen.text
        assert sentence(row.summary) in seen.text
        for component in row.components:
            assert component.verdict == "PASS" and component.name in seen.text
    assert seen.text.count("✓PASS") == 1 + len(TARGETS) * (1 + len(result.rows[0].components))
    for prompt in result.prompts:
        assert prompt in seen.text
    assert "exporter convert" in seen.text and "torch2." in seen.text


def test_a_second_run_replaces_the_first_and_a_fail_is_told(
    result: demo.DemoResult, tiny: Path, user_cache: Path
) -> None:
    """A limit far below rounding noise fails an honest artifact: the real road to a FAIL."""
    strict = QUICK | {"k": 1e-6, "pipeline": False}
    again = demo.run(result.page.parent, targets=["onnx"], source=str(tiny), steps=1, verify_settings=strict)
    assert again.page == result.page
    (row,) = again.rows
    assert row.status == "FAIL" and not again.ok
    assert row.painted is not None and row.folder is not None
    assert Artifact.open(row.folder).verified() == "FAIL"
    text = read(again.page.read_text(encoding="utf-8")).text
    assert "ONNX does not compute what PyTorch computes." in text and "✕FAIL" in text
