"""HunyuanDiT: its transformer is the library's bit for bit, and misfits are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from exporter.architectures import Component, Size, components_of
from exporter.architectures._transformer import unread
from exporter.checkpoints import resolve
from exporter.errors import CheckpointError, UsageError
from tests.architectures.test_families import changed
from tests.families import make

FAMILIES = ("hunyuan_dit", "hunyuan_dit_11")
SIZED = ["image_meta_size", "style"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hunyuan")
    return {family: make(family, root / family) for family in FAMILIES}


def named(folder: Path) -> dict[str, Component]:
    return {c.name: c for c in components_of(resolve(folder))}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_transformer_is_the_librarys_bit_for_bit(folders: dict[str, Path], family: str) -> None:
    from diffusers import HunyuanDiT2DModel

    component = named(folders[family])["transformer"]
    inputs = component.example_inputs(Size(2, 64, 96, 256), seed=3)
    assert (list(inputs)[8:] == SIZED) == (family == "hunyuan_dit_11")
    theirs = HunyuanDiT2DModel.from_pretrained(folders[family] / "transformer")
    given: dict[str, Any] = dict(inputs)
    given["image_rotary_emb"] = tuple(given.pop(f"image_rotary_emb_{n}") for n in (0, 1))
    with torch.no_grad():
        expected = theirs(**given).sample
        ours = component.reference_module()
        assert torch.equal(ours(**inputs)[0], expected)
        for name in set(inputs) - {"hidden_states", "style"}:  # of styles there is one
            other = inputs | {name: 1 - inputs[name]}
            assert not torch.equal(ours(**other)[0], expected), name


def test_text_is_the_librarys_bit_for_bit(folders: dict[str, Path]) -> None:
    from transformers import BertModel

    component = named(folders["hunyuan_dit"])["text_encoder"]
    inputs = component.example_inputs(Size(2, sequence=77))
    theirs = BertModel.from_pretrained(folders["hunyuan_dit"] / "text_encoder")
    with torch.no_grad():
        expected = theirs(**inputs).last_hidden_state
        assert torch.equal(component.reference_module()(**inputs)[0], expected)
    assert not [name for name in component.weights if "pooler" in name]


def test_an_untraced_size_changes_patches_and_rectangle_together(folders: dict[str, Path]) -> None:
    from exporter.artifact import TensorRecord
    from exporter.parity.cases import Inputs, untraced

    component = named(folders["hunyuan_dit"])["transformer"]
    case = Inputs("1", "captured", "", component.example_inputs(Size(2, 64, 96, 256)))
    records = [TensorRecord(name=s.name, dtype=s.dtype, dims=list(s.dims)) for s in component.inputs]
    (aspect,) = [found for found in untraced(component, [case], records) if found.kind == "aspect"]
    assert tuple(aspect.tensors["hidden_states"].shape[-2:]) == (6, 16)
    assert len(aspect.tensors["image_rotary_emb_0"]) == len(aspect.tensors["image_rotary_emb_1"]) == 3 * 8
    with torch.no_grad():
        assert component.reference_module()(**aspect.tensors)[0].shape == (2, 8, 6, 16)


def test_what_a_pipeline_passes_to_no_purpose() -> None:
    assert list(unread({"use_style_cond_and_image_meta_size": False})) == SIZED
    assert unread({"use_style_cond_and_image_meta_size": True}) == unread({}) == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stand_in_takes_the_pipelines_call(folders: dict[str, Path], family: str) -> None:
    """Inputs by place and in pairs as the pipeline passes them; what is read is never left out."""
    from exporter.artifact import TensorRecord
    from exporter.stand_ins import ExportedTransformer

    component = named(folders[family])["transformer"]
    inputs = component.example_inputs(Size(2, 64, 64, 256))
    asked: dict[str, Any] = {}

    class Recorder:
        def __init__(self) -> None:
            self.inputs, self.outputs = (
                [TensorRecord(name=s.name, dtype=s.dtype, dims=list(s.dims)) for s in specs]
                for specs in (component.inputs, component.outputs)
            )

        def run(self, arrays: dict[str, Any]) -> dict[str, Any]:
            asked.update(arrays)
            return {self.outputs[0].name: arrays["hidden_states"]}

    stand_in = ExportedTransformer(Recorder(), component.config)  # type: ignore[arg-type]
    assert (stand_in.num_heads, stand_in.inner_dim) == (2, 32)
    given: dict[str, Any] = dict(inputs)
    given["image_rotary_emb"] = tuple(given.pop(f"image_rotary_emb_{n}") for n in (0, 1))
    given |= {name: torch.zeros(2) for name in SIZED if name not in given}
    stand_in(given.pop("hidden_states"), given.pop("timestep"), **given)
    assert set(asked) == set(inputs)
    assert all((asked[name] == value.numpy()).all() for name, value in inputs.items())
    with pytest.raises(UsageError, match="passes 'controlnet_block_samples'"):
        stand_in(inputs["hidden_states"], inputs["timestep"], controlnet_block_samples=torch.ones(1))


@pytest.mark.parametrize(
    ("folder", "values", "message"),
    [
        ("transformer", {"text_len": 60}, "text_len is 60; a HunyuanDiTPipeline works with 77 only"),
        ("transformer", {"patch_size": 4}, "patch_size is 4"),
        ("transformer", {"learn_sigma": False}, "learn_sigma is False"),
        ("transformer", {"cross_attention_dim": 99}, r"99 channels .* text_encoder of .* give 24"),
        ("transformer", {"cross_attention_dim_t5": 99}, r"99 channels .* text_encoder_2 of .* give 32"),
        ("transformer", {"in_channels": 16}, r"16 channels .* the latents of vae .* give 4"),
        ("vae", {"block_out_channels": [16, 32]}, "pixels in a latent cell is 2"),
    ],
)
def test_misfits_are_named(
    folders: dict[str, Path], tmp_path: Path, folder: str, values: dict[str, Any], message: str
) -> None:
    copy = changed(folders["hunyuan_dit"], tmp_path / "copy", f"{folder}/config.json", **values)
    with pytest.raises(CheckpointError, match=message):
        components_of(resolve(copy))
