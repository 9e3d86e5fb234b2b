"""The safety checker as Apple's runners ask it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from exporter.architectures import components_of
from exporter.checkpoints import resolve
from exporter.safety_checker import ExportedSafetyChecker
from exporter.targets.coreml import load
from exporter.targets.coreml.layout import as_apple
from exporter.targets.coreml.lint import lint
from exporter.targets.coreml.package import open_package
from tests.checkers import ALWAYS, NEVER, PIXELS, checker, give
from tests.targets.coreml.conftest import as_artifact, export, judge

NAME = "safety_checker"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_tensors_are_apples_and_it_passes(tiny: Path, tmp_path: Path, truths: Path, dtype: str) -> None:
    source = give(tiny, tmp_path / "source", checker(0.3, 0.0))
    made = export(source, tmp_path / "made", (NAME,), dtype=dtype)
    model = load(made.package(NAME))
    height, width = made.records[NAME].inputs[1].dims[1:3]
    assert sorted((f.name, f.dtype, f.shape) for f in model.inputs) == [
        ("adjustment", dtype, (1,)),
        ("clip_input", dtype, (1, 3, PIXELS, PIXELS)),
        ("images", dtype, (1, height, width, 3)),
    ]
    assert [(f.name, f.dtype, f.shape) for f in model.outputs] == [
        ("filtered_images", "float32", (1, height, width, 3)),
        ("has_nsfw_concepts", "float32", (1, 1, 1, 1)),
        ("concept_scores", "float32", (1, 17)),
    ]
    assert lint(open_package(made.package(NAME)), NAME) == []
    assert judge(as_artifact(made, tmp_path / "artifact", [NAME]), truths).verdict == "PASS"


@pytest.mark.parametrize(("threshold", "hidden"), [(ALWAYS, True), (NEVER, False)])
def test_the_stand_in_blackens(tiny: Path, tmp_path: Path, threshold: float, hidden: bool) -> None:
    made = export(give(tiny, tmp_path / "source", checker(threshold)), tmp_path / "made", (NAME,))
    asked = ExportedSafetyChecker(made.open(NAME), {})
    pictures, flags = asked(torch.randn(2, 3, PIXELS, PIXELS), np.ones((2, 8, 8, 3), np.float32))
    assert flags == [hidden, hidden]
    assert bool((pictures == 0).all()) == hidden


def test_cases_are_clear_on_both_sides(tiny: Path, tmp_path: Path) -> None:
    source = give(tiny, tmp_path / "source", checker(0.3, 0.0))
    component = next(as_apple(c) for c in components_of(resolve(str(source))) if c.name == NAME)
    assert component.situations is not None
    look = {"clip_input": torch.randn(1, 3, PIXELS, PIXELS)}
    module, flags = component.reference_module(), []
    for _, case in component.situations(component, look, 8, 8):
        filtered, flag, scores = module(**case)
        assert abs(float(scores.max())) >= 0.0199
        assert torch.equal(filtered, case["images"] * (1 - flag))
        flags.append(int(flag))
    assert flags == [1, 1, 0, 0]
