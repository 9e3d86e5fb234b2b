"""Optimum's own pipelines open the ONNX artifact from disk and paint what diffusers paints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("optimum.onnxruntime")

from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from onnxruntime import SessionOptions
from optimum.onnxruntime import ORTStableDiffusionImg2ImgPipeline, ORTStableDiffusionPipeline
from PIL import Image

from tests.targets.onnx.conftest import export

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def artifact(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tiny, tmp_path_factory.mktemp("optimum")).root


def quiet_options() -> SessionOptions:
    options = SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return options


def open_both(artifact: Path, tiny: Path, ours: type, theirs: type):
    pair = (
        ours.from_pretrained(artifact, session_options=quiet_options(), export=False),
        theirs.from_pretrained(tiny, torch_dtype=torch.float32),
    )
    for pipeline in pair:
        pipeline.set_progress_bar_config(disable=True)
    return pair


@pytest.mark.parametrize(("height", "width", "number"), [(64, 64, 1), (64, 128, 2)])
def test_text_to_image(artifact: Path, tiny: Path, height: int, width: int, number: int) -> None:
    ours, theirs = open_both(artifact, tiny, ORTStableDiffusionPipeline, StableDiffusionPipeline)
    latents = torch.randn(number, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
    call = {
        "prompt": "a red star",
        "num_inference_steps": 2,
        "height": height,
        "width": width,
        "num_images_per_prompt": number,
        "output_type": "np",
    }
    result, expected = (p(latents=latents.clone(), **call).images for p in (ours, theirs))
    assert result.shape == expected.shape == (number, height, width, 3)
    assert expected.std() > 0.01  # a picture, not a plain surface
    assert np.abs(result - expected).max() <= 1e-4


def test_image_to_image_uses_the_encoder(artifact: Path, tiny: Path) -> None:
    ours, theirs = open_both(
        artifact, tiny, ORTStableDiffusionImg2ImgPipeline, StableDiffusionImg2ImgPipeline
    )
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    results = []
    for pipeline in (ours, theirs):
        torch.manual_seed(0)
        call = {"prompt": "a red star", "image": picture, "num_inference_steps": 4, "strength": 0.5}
        results.append(pipeline(**call, generator=torch.Generator().manual_seed(1), output_type="np").images)
    assert results[0].shape == results[1].shape
    assert np.abs(results[0] - results[1]).max() <= 1e-4


def test_float16_paints_nearly_the_same(tiny: Path, tmp_path: Path) -> None:
    artifact = export(tiny, tmp_path, dtype="float16").root
    ours, theirs = open_both(artifact, tiny, ORTStableDiffusionPipeline, StableDiffusionPipeline)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    call = {"prompt": "a red star", "num_inference_steps": 2, "output_type": "np"}
    result, expected = (p(latents=latents.clone(), **call).images for p in (ours, theirs))
    assert np.isfinite(result).all()
    assert np.abs(result - expected).max() <= 2e-2


def test_the_first_of_several_sizes_is_what_optimum_opens(tiny: Path, tmp_path: Path) -> None:
    artifact = export(tiny, tmp_path, static=["1x64x64", "1x96x64"]).root
    assert (artifact / "unet" / "model_1x96x64.onnx").is_file()
    ours, theirs = open_both(artifact, tiny, ORTStableDiffusionPipeline, StableDiffusionPipeline)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    call = {"prompt": "a red star", "num_inference_steps": 2, "output_type": "np"}
    result, expected = (p(latents=latents.clone(), **call).images for p in (ours, theirs))
    assert np.abs(result - expected).max() <= 1e-4
