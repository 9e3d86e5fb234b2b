"""Every video family × every format: converts, verifies at other sizes, films. Slow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from exporter.clips import film, in_one_picture
from exporter.conversion import convert, make_plan
from exporter.pipeline import load
from tests.families import VIDEO, make

pytestmark = pytest.mark.full
FORMS = [(t, "float32") for t in ("onnx", "openvino", "torchscript", "pt2", "stablehlo", "safetensors")]
FORMS += [("onnx", "float16"), ("openvino", "float16"), ("pt2", "bfloat16")]


@pytest.mark.parametrize(("target", "dtype"), FORMS)
@pytest.mark.parametrize("family", VIDEO)
def test_converts_verifies_and_films(family: str, target: str, dtype: str, tmp_path: Path) -> None:
    source = make(family, tmp_path / family)
    plan = make_plan(str(source), target, tmp_path / "artifact", {"dtype": dtype})
    done = convert(plan, verify_settings={"steps": 3, "samples": 2})
    assert done.verdict == "PASS", done.summary
    report = tmp_path / "artifact" / "verification"
    assert {path.name for path in report.glob("graph-1-*.png")} >= {"graph-1-artifact.png"}
    settings = {"steps": 3, "guidance": 3.0, "height": 64, "width": 96, "frames": 9}
    clips = [
        np.asarray(in_one_picture(film(load(path, precision_hint=hint), "a red star", **settings))).astype(
            int
        )
        for path, hint in ((done.artifact.root, "f32"), (source, None))
    ]
    assert clips[0].shape == clips[1].shape == (9 * 64, 96, 3)
    assert np.abs(clips[0] - clips[1]).max() <= (2 if dtype == "float32" else 24)


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_static(target: str, tmp_path: Path) -> None:
    source = make("ltx", tmp_path / "ltx")
    plan = make_plan(str(source), target, tmp_path / "artifact", {"static": "1x64x96x9"})
    done = convert(plan, verify_settings={"steps": 2, "samples": 1})
    assert done.verdict == "PASS", done.summary
    clip = film(load(done.artifact.root), "a", steps=2)
    assert (len(clip.frames), clip.width, clip.height) == (9, 96, 64)
