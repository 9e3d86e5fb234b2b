"""The safety checker as Apple's runners ask it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter.architectures import components_of
from exporter.checkpoints import resolve
from exporter.safety_checker import ExportedSafetyChecker
from exporter.targets.coreml import _safety, load
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


def test_it_decides_as_the_librarys(tiny: Path, tmp_path: Path) -> None:
    """The library's own checker, but for the rounding of scores, which Apple's has not."""
    made = checker(0.29, 0.07)
    source = give(tiny, tmp_path / "source", made)
    component = next(as_apple(c) for c in components_of(resolve(str(source))) if c.name == NAME)
    torch.manual_seed(3)
    looks = torch.randn(300, 3, PIXELS, PIXELS) * torch.linspace(0.1, 4, 300).view(-1, 1, 1, 1)
    pictures = torch.rand(300, 4, 4, 3)
    filtered, flags, scores = component.reference_module()(looks, pictures, torch.zeros(1))
    clear = (scores.amax(dim=1).abs() > 1e-3).tolist()
    blackened, theirs = made.forward_onnx(looks, pictures.clone())
    _, rounded = made(looks, [picture.numpy().copy() for picture in pictures])
    assert (flags.flatten() > 0.5).tolist() == theirs.tolist()
    assert torch.equal(filtered, blackened)
    ours = [bool(flag) for flag, sure in zip(flags.flatten(), clear, strict=True) if sure]
    assert ours == [flag for flag, sure in zip(rounded, clear, strict=True) if sure]
    assert 0.05 < np.mean(ours) < 0.95


def deaf(self: Any, clip_input: torch.Tensor, images: torch.Tensor, adjustment: torch.Tensor) -> Any:
    """Without the adjustment."""
    return honest(self, clip_input, images, adjustment * 0)


def showing(self: Any, clip_input: torch.Tensor, images: torch.Tensor, adjustment: torch.Tensor) -> Any:
    """Without blackening."""
    _, flag, concepts = honest(self, clip_input, images, adjustment)
    return images * 1, flag, concepts


def silent(self: Any, clip_input: torch.Tensor, images: torch.Tensor, adjustment: torch.Tensor) -> Any:
    """Without saying what it found."""
    filtered, flag, concepts = honest(self, clip_input, images, adjustment)
    return filtered, flag * 0, concepts


honest = _safety.Filtered.forward


@pytest.mark.parametrize("fault", [deaf, showing, silent, "thresholds"])
def test_a_fault_is_found(
    fault: Any, tiny: Path, tmp_path: Path, truths: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = give(tiny, tmp_path / "source", checker(0.3, 0.0))
    if fault == "thresholds":
        made = export(give(tiny, tmp_path / "other", checker(0.305, 0.0)), tmp_path / "made", (NAME,))
        right = {c.name: c for c in components_of(resolve(str(source)))}
        made.components[NAME] = right[NAME]
    else:
        with monkeypatch.context() as patch:
            patch.setattr(_safety.Filtered, "forward", fault)
            made = export(source, tmp_path / "made", (NAME,))
    assert judge(as_artifact(made, tmp_path / "artifact", [NAME]), truths).verdict == "FAIL"
