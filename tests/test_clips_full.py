"""Clips of a baked length. Slow; every video family × every format is in the matrix."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.clips import film
from exporter.conversion import convert, make_plan
from exporter.pipeline import load
from tests.families import make

pytestmark = pytest.mark.full


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_static(target: str, tmp_path: Path) -> None:
    source = make("ltx", tmp_path / "ltx")
    plan = make_plan(str(source), target, tmp_path / "artifact", {"static": "1x64x96x9"})
    done = convert(plan, verify_settings={"steps": 2, "samples": 1})
    assert done.verdict == "PASS", done.summary
    report = tmp_path / "artifact" / "verification"
    assert {path.name for path in report.glob("graph-1-*.png")} >= {"graph-1-artifact.png"}
    clip = film(load(done.artifact.root), "a", steps=2)
    assert (len(clip.frames), clip.width, clip.height) == (9, 96, 64)
