"""Sana in optimum's pipelines; PixArt has none. The text encoder sees more tokens than the transformer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter.conversion import convert, make_plan
from exporter.pipeline import from_checkpoint, load
from tests.families import make

pytestmark = [pytest.mark.interop, pytest.mark.full]
PROMPT = "a red star"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("sana", tmp_path_factory.mktemp("sana") / "tiny")


def converted(source: Path, target: str) -> Path:
    pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}[target])
    plan = make_plan(str(source), target, source.parent / target, verify=False)
    return convert(plan).artifact.root


def painted(pipeline: Any, prompt: str = PROMPT, *, guidance: float = 4.5) -> np.ndarray:
    """`[height, width, 3]` floats in [0, 1], at the size asked for: the library bins trained sizes only."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt, height=128, width=96, num_inference_steps=3, guidance_scale=guidance, clean_caption=False,
        use_resolution_binning=False, generator=torch.Generator().manual_seed(1), output_type="np",
    ).images[0]  # fmt: skip


@pytest.fixture(scope="module")
def expected(source: Path) -> np.ndarray:
    return painted(from_checkpoint(str(source)))


def distance(picture: np.ndarray, expected: np.ndarray) -> float:
    assert picture.shape == expected.shape == (128, 96, 3) and np.isfinite(picture).all()
    return float(np.abs(picture - expected).max())


def test_the_comparison_sees_another_text(source: Path, expected: np.ndarray) -> None:
    assert distance(painted(from_checkpoint(str(source)), "two dogs"), expected) > 0.01


def test_onnx(source: Path, expected: np.ndarray) -> None:
    artifact = converted(source, "onnx")
    assert distance(painted(load(artifact)), expected) <= 1e-3
    clients = pytest.importorskip("optimum.onnxruntime.modeling_diffusion")  # it is in no list of theirs
    pipeline = clients.ORTSanaPipeline.from_pretrained(artifact, export=False)
    assert distance(painted(pipeline), expected) <= 1e-3


def test_openvino(source: Path, expected: np.ndarray) -> None:
    artifact = converted(source, "openvino")
    assert distance(painted(load(artifact, precision_hint="f32")), expected) <= 1e-3
    clients = pytest.importorskip("optimum.intel")
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    pipeline = clients.OVSanaPipeline.from_pretrained(artifact, ov_config=settings)
    assert distance(painted(pipeline), expected) <= 1e-3
