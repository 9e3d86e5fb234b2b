"""The components are the library's own modules, built from the weights on disk."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from exporter.architectures import Component, Size, components_of
from exporter.checkpoints import resolve
from exporter.errors import CheckpointError

SIZES = [Size(1, 64, 64, 77), Size(3, 96, 64, 77), Size(2, 64, 128, 20)]


def named(folder: Path) -> dict[str, Component]:
    return {c.name: c for c in components_of(resolve(folder))}


@pytest.fixture(scope="module")
def pipeline(tiny: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(tiny, torch_dtype=torch.float32)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae_decoder", "vae_encoder"])
def test_the_reference_equals_the_pipeline_bit_for_bit(
    tiny: Path, pipeline: StableDiffusionPipeline, name: str, size: Size
) -> None:
    component = named(tiny)[name]
    inputs = component.example_inputs(size, seed=5)
    outputs = component.reference_module()(**inputs)
    p = pipeline
    with torch.no_grad():
        expected = {
            "text_encoder": lambda input_ids: p.text_encoder(input_ids, return_dict=False),
            "unet": lambda **x: (p.unet(**x).sample,),
            "vae_decoder": lambda latent_sample: (p.vae.decode(latent_sample).sample,),
            "vae_encoder": lambda sample: (p.vae.encode(sample).latent_dist.parameters,),
        }[name](**inputs)
    assert len(outputs) == len(component.outputs)
    for spec, mine, theirs in zip(component.outputs, outputs, expected, strict=True):
        assert tuple(mine.shape) == spec.shape(size)
        assert torch.equal(mine, theirs)


def test_the_meta_module_holds_no_weights(tiny: Path) -> None:
    for component in named(tiny).values():
        module = component.meta_module()
        assert all(p.is_meta for p in module.parameters())
        assert not any(b.is_meta for b in module.buffers())


def test_building_without_weights_leaves_torch_as_it_was(tiny: Path) -> None:
    named(tiny)["unet"].meta_module()
    layer = torch.nn.Linear(4, 4)
    assert not layer.weight.is_meta and layer.weight.abs().sum() > 0


def test_models_made_afterwards_are_initialised(tiny: Path) -> None:
    """In a fresh process, where the libraries are imported for the first time without weights."""
    code = """
import sys
from exporter.architectures import components_of
from exporter.checkpoints import resolve
for component in components_of(resolve(sys.argv[1])):
    component.meta_module()
from transformers import CLIPTextModel
CLIPTextModel.from_pretrained(sys.argv[1] + "/text_encoder")
import torch
torch.empty = lambda *size, empty=torch.empty, **how: empty(*size, **how).fill_(float("nan"))
layers = torch.nn.Linear(4, 4), torch.nn.Conv2d(4, 4, 3)
print(*(bool(layer.weight.isfinite().all()) for layer in layers))
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(tiny)], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["True", "True"]


def test_float64_reference(tiny: Path) -> None:
    component = named(tiny)["vae_decoder"]
    inputs = {n: t.double() for n, t in component.example_inputs(Size(1, 64, 64, 77)).items()}
    outputs = component.reference_module(torch.float64)(**inputs)
    assert {o.dtype for o in outputs} == {torch.float64}


def test_old_attention_names_of_the_hub_are_understood(tiny: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(tiny, tmp_path / "old"))
    path = old / "vae/diffusion_pytorch_model.safetensors"
    renames = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors = {}
    for name, tensor in load_file(path).items():
        for new, former in renames.items():
            name = name.replace(new, former)
        tensors[name] = tensor
    assert any(".query." in name for name in tensors)
    save_file(tensors, path)
    a, b = named(tiny)["vae_decoder"], named(old)["vae_decoder"]
    inputs = a.example_inputs(Size(1, 64, 64, 77))
    assert torch.equal(a.reference_module()(**inputs)[0], b.reference_module()(**inputs)[0])


def test_a_config_that_does_not_fit_the_weights(tiny: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    config = json.loads((copy / "unet/config.json").read_text())
    config["in_channels"] = 5
    (copy / "unet/config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="has shape"):
        named(copy)["unet"].reference_module()
    config["layers_per_block"] = 2
    (copy / "unet/config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="do not hold"):
        named(copy)["unet"].reference_module()


def test_the_weights_digest_follows_weights_and_config(tiny: Path, tiny_fp16: Path, tmp_path: Path) -> None:
    first = named(tiny)["unet"].weights_digest
    assert first == named(Path(shutil.copytree(tiny, tmp_path / "same")))["unet"].weights_digest
    assert first != named(tiny_fp16)["unet"].weights_digest


def test_an_unknown_family_is_named(tiny: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    index = json.loads((copy / "model_index.json").read_text())
    index["_class_name"] = "SomethingElsePipeline"
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="SomethingElsePipeline"):
        components_of(resolve(copy))
