"""Every family × every format with a graph: converts, verifies at other sizes, paints. Slow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from exporter.conversion import convert, make_plan
from exporter.pipeline import load, paint
from tests import test_tasks
from tests.families import FAMILIES, make

pytestmark = pytest.mark.full
TASK = {"inpaint": ("image", "mask"), "sdxl_refiner": ("image",), "flux_fill": ("image", "mask")}


FORMS = [(t, d) for t in ("onnx", "openvino", "torchscript", "pt2") for d in ("float32", "float16")]
FORMS += [("stablehlo", "float32"), ("stablehlo", "bfloat16")]


@pytest.mark.parametrize(("target", "dtype"), FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_converts_verifies_and_paints(family: str, target: str, dtype: str, tmp_path: Path) -> None:
    source = make(family, tmp_path / family)
    follows = test_tasks.TASK.get(family, "").startswith("control")
    # JAX cannot tell one free size from half of another.
    baked = {"static": "1x64x64"} if target == "stablehlo" and follows else {}
    plan = make_plan(str(source), target, tmp_path / "artifact", {"dtype": dtype, **baked})
    done = convert(plan, verify_settings={"steps": 3, "samples": 2})
    assert done.verdict == "PASS", done.summary
    start = Image.new("RGB", (64, 64), (200, 60, 30))
    start.paste((20, 90, 220), (0, 0, 32, 64))
    given: dict[str, Any] = dict.fromkeys(TASK.get(family, ()), start)
    if follows:
        given = test_tasks.given(test_tasks.TASK[family])
    settings = {"steps": 4, "guidance": 5.0, **given}
    pictures = [paint(load(path, precision_hint=hint), ["a red star"], **settings)[0]
                for path, hint in ((done.artifact.root, "f32"), (source, None))]  # fmt: skip
    mine, theirs = (np.asarray(picture).astype(int) for picture in pictures)
    assert mine.shape == theirs.shape
    assert np.abs(mine - theirs).max() <= (2 if dtype == "float32" else 24)


@pytest.mark.parametrize("target", ["onnx", "openvino", "pt2", "stablehlo"])
@pytest.mark.parametrize("family", ["sdxl", "lcm"])
def test_static(family: str, target: str, tmp_path: Path) -> None:
    source = make(family, tmp_path / family)
    plan = make_plan(str(source), target, tmp_path / "artifact", {"static": "1x64x64"})
    done = convert(plan, verify_settings={"steps": 2, "samples": 1})
    assert done.verdict == "PASS", done.summary
    assert paint(load(done.artifact.root), ["a"], steps=2)[0].size == (64, 64)
