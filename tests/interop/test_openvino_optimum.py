"""optimum-intel opens OpenVINO artifacts from disk, reshapes, compiles and paints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("openvino")
pytest.importorskip("optimum.intel")

from tests.interop.openvino_artifacts import make, make_once
from tests.judge import judge

pytestmark = pytest.mark.interop
PROMPTS = [
    "a large red star at the left on a blue background",
    "a small yellow circle at the top on a black background",
]
F32 = {"INFERENCE_PRECISION_HINT": "f32"}


@pytest.fixture(scope="module")
def tiny_artifact(tiny: Path) -> Path:
    return make_once(str(tiny), tiny.parent / "openvino-clients")


@pytest.fixture(scope="module")
def shapes_artifact(tiny: Path) -> Path:
    return make_once("builtin:shapes", tiny.parent / "openvino-shapes")


def paint(pipeline: Any, prompt: str, *, size: tuple[int, int], steps: int) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    height, width = size
    generator = torch.Generator().manual_seed(5)
    return pipeline(
        prompt, height=height, width=width, num_inference_steps=steps, output_type="np", generator=generator
    ).images[0]


def test_same_picture_as_diffusers_then_reshaped_and_compiled(tiny_artifact: Path, tiny: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from optimum.intel import OVStableDiffusionPipeline

    reference = paint(StableDiffusionPipeline.from_pretrained(tiny), "a star", size=(64, 128), steps=3)
    pipeline = OVStableDiffusionPipeline.from_pretrained(tiny_artifact, ov_config=F32)
    dynamic = paint(pipeline, "a star", size=(64, 128), steps=3)
    assert np.abs(dynamic - reference).max() <= 1e-3

    pipeline.reshape(batch_size=1, height=64, width=128, num_images_per_prompt=1)
    pipeline.compile()
    for part in (pipeline.text_encoder, pipeline.unet, pipeline.vae_decoder, pipeline.vae_encoder):
        assert all(port.get_partial_shape().is_static for port in part.model.inputs)
    static = paint(pipeline, "a star", size=(64, 128), steps=3)
    assert np.abs(static - reference).max() <= 1e-3


def test_picture_to_picture(tiny_artifact: Path) -> None:
    from optimum.intel import OVStableDiffusionImg2ImgPipeline
    from PIL import Image

    pipeline = OVStableDiffusionImg2ImgPipeline.from_pretrained(tiny_artifact, ov_config=F32)
    pipeline.set_progress_bar_config(disable=True)
    start = Image.new("RGB", (64, 64), (200, 40, 40))
    generator = torch.Generator().manual_seed(5)
    result = pipeline(
        "a star", image=start, strength=0.7, num_inference_steps=3, output_type="np", generator=generator
    ).images[0]
    assert result.shape == (64, 64, 3)
    assert np.isfinite(result).all()


def test_static_float16_artifact_paints(tiny: Path, tmp_path: Path) -> None:
    """Of several sizes it is the first that is opened."""
    from optimum.intel import OVStableDiffusionPipeline

    artifact = make(tiny, tmp_path / "static", dtype="float16", static=["1x64x64", "1x96x64"])
    pipeline = OVStableDiffusionPipeline.from_pretrained(artifact, dynamic_shapes=False, ov_config=F32)
    assert paint(pipeline, "a star", size=(64, 64), steps=2).shape == (64, 64, 3)


@pytest.mark.parametrize("hint", [F32, {}], ids=["f32", "as it comes"])
def test_embedded_checkpoint_paints_what_is_asked(shapes_artifact: Path, hint: dict[str, str]) -> None:
    from optimum.intel import OVStableDiffusionPipeline

    pipeline = OVStableDiffusionPipeline.from_pretrained(shapes_artifact, ov_config=hint)
    for prompt in PROMPTS:
        judgement = judge(paint(pipeline, prompt, size=(128, 128), steps=25), prompt)
        assert judgement.ok, judgement
