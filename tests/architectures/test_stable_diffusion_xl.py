"""Stable Diffusion XL: each component computes what PyTorch does, and the pipelines open the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime")

from exporter import conversion, pipeline
from exporter.architectures import Size, components_of
from exporter.artifact import Artifact
from exporter.checkpoints import resolve
from exporter.targets import RunOptions
from exporter.targets.onnx import OnnxTarget
from tests.tiny_sdxl import make_tiny_sdxl

NAMES = ["text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder"]
UNTRACED = Size(batch=3, height=128, width=64, sequence=77, factor=8)
PAINT: dict[str, Any] = {"seed": 3, "steps": 2, "guidance": 5.0}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sdxl(tmp_path_factory.mktemp("tiny-xl") / "tiny-xl")


@pytest.fixture(scope="module")
def artifact(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    plan = conversion.make_plan(str(source), "onnx", tmp_path_factory.mktemp("xl") / "out", verify=False)
    return conversion.convert(plan).artifact


def test_components(source: Path) -> None:
    components = components_of(resolve(source))
    assert [c.name for c in components] == NAMES
    first, second, unet = components[:3]
    states = [f"hidden_states.{n}" for n in range(4)]
    assert [s.name for s in first.outputs] == ["last_hidden_state", "pooler_output", *states]
    assert [s.name for s in second.outputs] == ["text_embeds", "last_hidden_state", *states]
    assert [(s.name, s.dims) for s in unet.inputs[3:]] == [
        ("text_embeds", ("batch", 32)),
        ("time_ids", ("batch", 6)),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_computes_what_pytorch_does_at_an_untraced_size(source: Path, artifact: Artifact, name: str) -> None:
    component = next(c for c in components_of(resolve(source)) if c.name == name)
    record = artifact.manifest.component(name)
    assert record.details["route"] == "direct"
    inputs = component.example_inputs(UNTRACED, seed=5)
    with torch.no_grad():
        expected = component.reference_module()(**inputs)
    with OnnxTarget().open(artifact.root, record, RunOptions(threads=1)) as runner:
        got = runner.run({name: value.numpy() for name, value in inputs.items()})
    assert list(got) == [spec.name for spec in component.outputs]
    for value, truth in zip(got.values(), expected, strict=True):
        error = np.linalg.norm(value - truth.numpy()) / np.linalg.norm(truth.numpy())
        assert error <= 2e-5


def test_paints_what_the_reference_paints(source: Path, artifact: Artifact) -> None:
    ours, theirs = (
        np.asarray(pipeline.paint(pipeline.load(place), ["a red star"], **PAINT)[0], dtype=np.float64)
        for place in (artifact.root, source)
    )
    assert ours.shape == theirs.shape == (64, 64, 3)
    assert np.abs(ours - theirs).max() <= 1
    other = np.asarray(
        pipeline.paint(pipeline.load(artifact.root), ["a blue sea"], **PAINT)[0], dtype=np.float64
    )
    assert np.abs(ours - other).max() > 1, "the prompt matters"


@pytest.mark.interop
def test_optimum_opens_it(source: Path, artifact: Artifact) -> None:
    optimum = pytest.importorskip("optimum.onnxruntime")
    client = optimum.ORTStableDiffusionXLPipeline.from_pretrained(artifact.root)
    client.set_progress_bar_config(disable=True)
    given: dict[str, Any] = {
        "num_inference_steps": 2, "guidance_scale": 5.0, "height": 64, "width": 64, "output_type": "np",
    }  # fmt: skip
    pictures = [
        each("a red star", generator=torch.Generator("cpu").manual_seed(3), **given).images[0]
        for each in (client, pipeline.load(source))
    ]
    assert np.abs(pictures[0] - pictures[1]).max() <= 0.01
