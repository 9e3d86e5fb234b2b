"""TAESD: an AutoencoderTiny in the place of a model's autoencoder, its own or by `--vae`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from exporter.architectures import Size, components_of
from exporter.checkpoints import open_source, resolve
from exporter.conversion import convert, make_plan
from exporter.errors import CheckpointError, UnsupportedError
from exporter.pipeline import from_checkpoint, load, paint
from tests.architectures.test_families import changed
from tests.families import make
from tests.parts import tiny_vae


@pytest.fixture(scope="module")
def taesd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("taesd", tmp_path_factory.mktemp("taesd") / "model")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny autoencoder alone, as `madebyollin/taesd` is published."""
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("vae") / "taesd"
    tiny_vae().save_pretrained(folder)
    return folder


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(4).integers(0, 256, (64, 64, 3), np.uint8))


def test_both_halves_are_the_librarys_bit_for_bit(taesd: Path) -> None:
    from diffusers import AutoencoderTiny

    theirs = AutoencoderTiny.from_pretrained(taesd / "vae")
    parts = {c.name: c for c in components_of(resolve(taesd))}
    for name, method in (("vae_decoder", theirs.decode), ("vae_encoder", theirs.encode)):
        (given,) = parts[name].example_inputs(Size(2, 64, 96)).values()
        with torch.no_grad():
            expected = method(given, return_dict=False)[0]
            assert torch.equal(parts[name].reference_module()(given)[0], expected)
        assert tuple(expected.shape) == parts[name].outputs[0].shape(Size(2, 64, 96))
    assert parts["vae_encoder"].outputs[0].name == "latent_sample", (
        "optimum takes it for the latents themselves"
    )
    assert sum(parts[n].parameters for n in ("vae_decoder", "vae_encoder")) == sum(
        p.numel() for p in theirs.parameters()
    )


def test_a_config_without_the_name_that_pipelines_read(taesd: Path, tmp_path: Path) -> None:
    copy = changed(taesd, tmp_path / "copy", "vae/config.json", block_out_channels=None)
    assert components_of(resolve(copy))[0].native.factor == 8


@pytest.mark.parametrize(
    "values", [{"encoder_block_out_channels": [16, 16]}, {"upsampling_scaling_factor": 3}]
)
def test_halves_that_differ_in_scale(taesd: Path, tmp_path: Path, values: dict[str, Any]) -> None:
    copy = changed(taesd, tmp_path / "copy", "vae/config.json", **values)
    with pytest.raises(CheckpointError, match="change the size by different factors"):
        components_of(resolve(copy))


def test_core_ml_refuses_before_any_work(taesd: Path, tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    with pytest.raises(UnsupportedError, match="an AutoencoderTiny has neither") as error:
        make_plan(str(taesd), "coreml", tmp_path / "artifact")
    assert error.value.hint
    assert make_plan(str(taesd), "coreml", tmp_path / "artifact", components=["unet"]).components


@pytest.mark.parametrize(
    ("target", "family"), [("onnx", "sd2"), pytest.param("openvino", "sdxl", marks=pytest.mark.full)]
)
def test_laid_over_a_model(target: str, family: str, other: Path, tmp_path: Path) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(target, target))
    source = make(family, tmp_path / "model")
    assert open_source(source, vae=str(other)).component_classes["vae"] == ("diffusers", "AutoencoderTiny")
    plan = make_plan(str(source), target, tmp_path / "artifact", intake={"vae": str(other)})
    done = convert(plan, verify_settings={"steps": 2, "samples": 1})
    assert done.verdict == "PASS", done.summary
    index = json.loads((done.artifact.root / "model_index.json").read_text())
    assert index["vae"] == ["diffusers", "AutoencoderTiny"]
    for given in ({}, {"image": picture(), "strength": 0.5}):
        settings: dict[str, Any] = {"steps": 4, "guidance": 5.0, **given}
        mine = paint(load(done.artifact.root), ["a red star"], **settings)[0]
        theirs = paint(from_checkpoint(str(source), vae=str(other)), ["a red star"], **settings)[0]
        own = paint(from_checkpoint(str(source)), ["a red star"], **settings)[0]
        mine_, theirs_, own_ = (np.asarray(p).astype(int) for p in (mine, theirs, own))
        assert np.abs(mine_ - theirs_).max() <= 2
        assert np.abs(own_ - theirs_).max() > 2, "it is the other autoencoder that paints"


@pytest.mark.interop
def test_optimum_paints_with_it_and_starts_from_a_picture(taesd: Path, tmp_path: Path) -> None:
    pytest.importorskip("optimum.onnxruntime")
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
    from optimum.onnxruntime import ORTStableDiffusionImg2ImgPipeline, ORTStableDiffusionPipeline

    root = convert(make_plan(str(taesd), "onnx", tmp_path / "artifact", verify=False)).artifact.root
    pairs: list[tuple[Any, Any, dict[str, Any]]] = [
        (ORTStableDiffusionPipeline, StableDiffusionPipeline, {"height": 64, "width": 128}),
        (
            ORTStableDiffusionImg2ImgPipeline,
            StableDiffusionImg2ImgPipeline,
            {"image": picture(), "strength": 0.5},
        ),
    ]
    for ours, theirs, given in pairs:
        results = []
        for pipeline in (ours.from_pretrained(root, export=False), theirs.from_pretrained(taesd)):
            pipeline.set_progress_bar_config(disable=True)
            call = {"prompt": "a red star", "num_inference_steps": 4, "output_type": "np", **given}
            results.append(pipeline(**call, generator=torch.Generator().manual_seed(1)).images)
        assert results[1].std() > 0.01
        assert results[0].shape == results[1].shape
        assert np.abs(results[0] - results[1]).max() <= 1e-4
