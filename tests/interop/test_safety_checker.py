"""What other clients make of an artifact with a safety checker: they paint as before; diffusers asks it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter.conversion import convert, make_plan
from tests.checkers import ALWAYS, checker, give

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def source(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return give(tiny, tmp_path_factory.mktemp("checked") / "sd", checker(ALWAYS))


def artifact(source: Path, target: str) -> Path:
    out = source.with_name(target)
    if not out.exists():
        convert(make_plan(str(source), target, out, {}, verify=False))
    assert (out / "safety_checker" / "config.json").is_file()
    return out


def paint(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        "a red star", num_inference_steps=2, height=64, width=64, output_type="np",
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(tiny: Path) -> np.ndarray:
    from diffusers import StableDiffusionPipeline

    return paint(StableDiffusionPipeline.from_pretrained(tiny)).images


def test_optimum_paints_the_onnx_without_asking_it(source: Path, expected: np.ndarray) -> None:
    runtime = pytest.importorskip("optimum.onnxruntime")
    pipeline = runtime.ORTStableDiffusionPipeline.from_pretrained(artifact(source, "onnx"), export=False)
    assert pipeline.safety_checker is None
    assert np.abs(paint(pipeline).images - expected).max() <= 1e-4


def test_optimum_intel_paints_the_openvino_without_asking_it(source: Path, expected: np.ndarray) -> None:
    intel = pytest.importorskip("optimum.intel")
    pipeline = intel.OVStableDiffusionPipeline.from_pretrained(
        artifact(source, "openvino"), ov_config={"INFERENCE_PRECISION_HINT": "f32"}
    )
    assert pipeline.safety_checker is None
    assert np.abs(paint(pipeline).images - expected).max() <= 1e-3


def test_genai_paints_the_openvino_without_asking_it(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino_genai")
    from tests.interop.test_openvino_genai import paint as paint_with_genai

    pictures = paint_with_genai(artifact(source, "openvino"), tmp_path / "p.npy", "dynamic", 64, 2, "a star")
    assert pictures.shape == (1, 64, 64, 3) and pictures.std() > 1


def test_diffusers_opens_the_safetensors_with_it(source: Path) -> None:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(artifact(source, "safetensors"), local_files_only=True)
    assert type(pipeline.safety_checker).__name__ == "StableDiffusionSafetyChecker"
    stored = pipeline.safety_checker.state_dict()
    assert all(torch.equal(stored[name], value) for name, value in checker(ALWAYS).state_dict().items())
    result = paint(pipeline)
    assert result.nsfw_content_detected == [True] and not result.images.any()
