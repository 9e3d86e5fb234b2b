"""Stable Diffusion XL: one conversion per format, verified, and opened by the clients people use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter.conversion import convert, make_plan
from exporter.parity import verify
from exporter.pipeline import from_checkpoint, load
from tests.families import make

pytestmark = pytest.mark.interop
PROMPT = "a red star"
STEPS, GUIDANCE = 3, 5.0

GENAI = """
import sys, numpy, openvino, openvino_genai
folder, noise, out, steps, guidance, prompt = sys.argv[1:]

class Noise(openvino_genai.Generator):
    def __init__(self):
        openvino_genai.Generator.__init__(self)

    def next(self):
        raise RuntimeError("one tensor is drawn, not single numbers")

    def randn_tensor(self, shape):
        return openvino.Tensor(numpy.load(noise).reshape(tuple(shape)))

pipeline = openvino_genai.Text2ImagePipeline(folder, "CPU", INFERENCE_PRECISION_HINT="f32")
picture = pipeline.generate(
    prompt, width=64, height=64, num_inference_steps=int(steps), guidance_scale=float(guidance),
    generator=Noise(),
)
numpy.save(out, numpy.array(picture.data, copy=True)[0])
"""


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("sdxl", tmp_path_factory.mktemp("sdxl") / "tiny")


def converted(source: Path, target: str) -> Path:
    pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}[target])
    plan = make_plan(str(source), target, source.parent / target, verify=False)
    return convert(plan).artifact.root


@pytest.fixture(scope="module")
def onnx(sdxl: Path) -> Path:
    return converted(sdxl, "onnx")


@pytest.fixture(scope="module")
def openvino(sdxl: Path) -> Path:
    return converted(sdxl, "openvino")


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def painted(pipeline: Any, noise: torch.Tensor) -> np.ndarray:
    """`[height, width, 3]` floats in [0, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        PROMPT, height=64, width=64, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
        latents=noise.clone(), output_type="np",
    ).images[0]  # fmt: skip


@pytest.fixture(scope="module")
def expected(sdxl: Path, noise: torch.Tensor) -> np.ndarray:
    return painted(from_checkpoint(str(sdxl)), noise)


def distance(picture: np.ndarray, expected: np.ndarray) -> float:
    assert picture.shape == expected.shape and np.isfinite(picture).all()
    return float(np.abs(picture - expected).max())


def test_the_comparison_sees_another_hidden_state(
    sdxl: Path, noise: torch.Tensor, expected: np.ndarray
) -> None:
    """A client that took the last hidden state instead of the last but one would be noticed."""
    pipeline = from_checkpoint(str(sdxl))
    embeds = pipeline.encode_prompt(PROMPT, device="cpu", do_classifier_free_guidance=True, clip_skip=-1)
    names = (
        "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds",
    )  # fmt: skip
    wrong = pipeline(
        **dict(zip(names, embeds, strict=True)), height=64, width=64, num_inference_steps=STEPS,
        guidance_scale=GUIDANCE, latents=noise.clone(), output_type="np",
    ).images[0]  # fmt: skip
    assert distance(wrong, expected) > 0.02


@pytest.mark.parametrize("target", ["onnx", pytest.param("openvino", marks=pytest.mark.full)])
def test_verifies(request: pytest.FixtureRequest, target: str) -> None:
    report = verify(request.getfixturevalue(target), steps=2, samples=1, prompts=[PROMPT])
    assert report.verdict == "PASS", report.summary
    assert len(report.components) == 5
    kinds = {case.kind for c in report.components for run in c.runs for case in run.cases}
    assert {"captured", "batch", "aspect", "sequence"} <= kinds
    assert report.pipeline is not None and report.pipeline.runs and report.pipeline.not_checked is None
    assert "text_encoder_2" in report.pipeline.exported


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_run_paints_what_pytorch_paints(
    request: pytest.FixtureRequest, target: str, noise: torch.Tensor, expected: np.ndarray
) -> None:
    pipeline = load(request.getfixturevalue(target), precision_hint="f32")
    assert distance(painted(pipeline, noise), expected) <= 1e-3


def test_optimum_onnx(onnx: Path, noise: torch.Tensor, expected: np.ndarray) -> None:
    pytest.importorskip("optimum.onnxruntime")
    from optimum.onnxruntime import ORTStableDiffusionXLPipeline

    pipeline = ORTStableDiffusionXLPipeline.from_pretrained(onnx, export=False)
    assert distance(painted(pipeline, noise), expected) <= 1e-3


def test_optimum_openvino_dynamic_and_reshaped(
    openvino: Path, noise: torch.Tensor, expected: np.ndarray
) -> None:
    pytest.importorskip("optimum.intel")
    from optimum.intel import OVStableDiffusionXLPipeline

    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    pipeline = OVStableDiffusionXLPipeline.from_pretrained(openvino, ov_config=settings)
    assert distance(painted(pipeline, noise), expected) <= 1e-3
    pipeline.reshape(batch_size=1, height=64, width=64, num_images_per_prompt=1)
    pipeline.compile()
    assert all(port.get_partial_shape().is_static for port in pipeline.unet.model.inputs)
    assert distance(painted(pipeline, noise), expected) <= 1e-3


def test_openvino_genai(openvino: Path, noise: torch.Tensor, expected: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip("openvino_genai")
    np.save(tmp_path / "noise.npy", noise.numpy())
    arguments = [openvino, tmp_path / "noise.npy", tmp_path / "out.npy", STEPS, GUIDANCE, PROMPT]
    done = subprocess.run(
        [sys.executable, "-c", GENAI, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert distance(np.load(tmp_path / "out.npy") / 255, expected) <= 2 / 255  # it truncates to bytes
