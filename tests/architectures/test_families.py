"""Every family: its components are the library's own modules, and its misfits are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from exporter.architectures import Component, Size, components_of
from exporter.checkpoints import resolve
from exporter.errors import CheckpointError
from exporter.targets.base import component_size
from tests.families import FAMILIES, make

FLUX = ["text_encoder", "text_encoder_2", "transformer", "vae_decoder", "vae_encoder"]
PIXART = ["text_encoder", "transformer", "vae_decoder", "vae_encoder"]
PARTS = {
    "sdxl": ["text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder"],
    "sd3": ["text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae_decoder", "vae_encoder"],
    "sd35": ["text_encoder", "text_encoder_2", "transformer", "vae_decoder", "vae_encoder"],
    "flux": FLUX,
    "flux_schnell": FLUX,
    "flux_fill": FLUX,
    "pixart_sigma": PIXART,
    "pixart_alpha": PIXART,
    "sana": PIXART,
    "cogview3": PIXART,
    "hunyuan_dit": FLUX,
    "hunyuan_dit_11": FLUX,
    "sdxl_refiner": ["text_encoder_2", "unet", "vae_decoder", "vae_encoder"],
    "controlnet": ["text_encoder", "controlnet", "unet", "vae_decoder", "vae_encoder"],
    "two_controlnets": ["text_encoder", "controlnet", "controlnet_1", "unet", "vae_decoder", "vae_encoder"],
    "t2i_adapter": ["text_encoder", "adapter", "unet", "vae_decoder", "vae_encoder"],
    "sdxl_t2i_adapter": [
        "text_encoder", "text_encoder_2", "adapter", "unet", "vae_decoder", "vae_encoder",
    ],
    "checked": ["text_encoder", "unet", "vae_decoder", "vae_encoder", "safety_checker"],
    "sdxl_controlnet": [
        "text_encoder", "text_encoder_2", "controlnet", "unet", "vae_decoder", "vae_encoder",
    ],
}  # fmt: skip
USUAL = ["text_encoder", "unet", "vae_decoder", "vae_encoder"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: make(family, root / family) for family in FAMILIES}


def named(folder: Path) -> dict[str, Component]:
    return {c.name: c for c in components_of(resolve(folder))}


def changed(folder: Path, copy: Path, file: str, **values: Any) -> Path:
    """A copy of a checkpoint with other values in one of its JSON files."""
    shutil.copytree(folder, copy)
    content = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps(content | values))
    return copy


@pytest.mark.parametrize("family", FAMILIES)
def test_components_give_what_they_declare(folders: dict[str, Path], family: str) -> None:
    parts = named(folders[family])
    assert list(parts) == PARTS.get(family, USUAL)
    for component in parts.values():
        factor = component.native.factor
        for size in (Size(3, 96, 64, 20, factor), Size(2, 64, 128, 77, factor)):
            outputs = component.reference_module()(**component.example_inputs(size, seed=5))
            assert [tuple(o.shape) for o in outputs] == [s.shape(size) for s in component.outputs]
            assert all(bool(o.isfinite().all()) for o in outputs)


@pytest.mark.parametrize("family", ["sdxl", "lcm"])
def test_the_unet_is_the_librarys_bit_for_bit(folders: dict[str, Path], family: str) -> None:
    from diffusers import UNet2DConditionModel

    component = named(folders[family])["unet"]
    inputs = component.example_inputs(Size(2, 64, 96, 20), seed=3)
    theirs = UNet2DConditionModel.from_pretrained(folders[family] / "unet")
    given = dict(inputs)
    if family == "sdxl":
        given["added_cond_kwargs"] = {n: given.pop(n) for n in ("text_embeds", "time_ids")}
    with torch.no_grad():
        expected = theirs(**given).sample
        assert torch.equal(component.reference_module()(**inputs)[0], expected)
        for name in set(inputs) - {"sample", "timestep", "encoder_hidden_states"}:
            other = inputs | {name: inputs[name] + 1}
            assert not torch.equal(component.reference_module()(**other)[0], expected), name


def test_hidden_states_are_the_librarys(folders: dict[str, Path]) -> None:
    from transformers import CLIPTextModelWithProjection

    component = named(folders["sdxl"])["text_encoder_2"]
    inputs = component.example_inputs(Size(2, 64, 64, 77))
    theirs = CLIPTextModelWithProjection.from_pretrained(folders["sdxl"] / "text_encoder_2")
    with torch.no_grad():
        expected = theirs(**inputs, output_hidden_states=True)
    outputs = dict(
        zip((s.name for s in component.outputs), component.reference_module()(**inputs), strict=True)
    )
    assert list(outputs) == ["text_embeds", "last_hidden_state", *(f"hidden_states.{i}" for i in range(4))]
    assert torch.equal(outputs["text_embeds"], expected.text_embeds)
    assert torch.equal(outputs["last_hidden_state"], expected.last_hidden_state)
    for i, state in enumerate(expected.hidden_states):
        assert torch.equal(outputs[f"hidden_states.{i}"], state)


def test_inputs_of_each_unet(folders: dict[str, Path]) -> None:
    def inputs(family: str) -> dict[str, tuple[Any, ...]]:
        return {s.name: s.dims for s in named(folders[family])["unet"].inputs}

    assert inputs("sdxl")["text_embeds"] == ("batch", 24)
    assert inputs("sdxl")["time_ids"] == ("batch", 6)
    assert inputs("sdxl_refiner")["time_ids"] == ("batch", 5)
    assert inputs("lcm")["timestep_cond"] == ("batch", 16)
    assert inputs("inpaint")["sample"][1] == 9
    assert list(inputs("sd2")) == ["sample", "timestep", "encoder_hidden_states"]


def test_a_baked_unet_has_two_rows_a_picture_only_under_guidance(folders: dict[str, Path]) -> None:
    assert component_size(named(folders["sdxl"])["unet"], (1, 64, 64)).batch == 2
    assert component_size(named(folders["lcm"])["unet"], (1, 64, 64)).batch == 1


@pytest.mark.parametrize(
    ("family", "part"), [("sdxl", "text_encoder_2"), ("sd2", "text_encoder"), ("sdxl", "vae")]
)
def test_a_part_that_is_missing(folders: dict[str, Path], tmp_path: Path, family: str, part: str) -> None:
    copy = changed(folders[family], tmp_path / "copy", "model_index.json", **{part: [None, None]})
    with pytest.raises(CheckpointError, match=f"without a {part}: model_index.json has none") as error:
        components_of(resolve(copy))
    assert error.value.hint


def test_a_base_model_without_its_first_text_encoder(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = changed(folders["sdxl"], tmp_path / "copy", "model_index.json", text_encoder=[None, None])
    with pytest.raises(CheckpointError, match=r"wants text of 48 channels .* give 32"):
        components_of(resolve(copy))


def test_a_text_encoder_of_another_kind(folders: dict[str, Path], tmp_path: Path) -> None:
    value = ["transformers", "T5EncoderModel"]
    copy = changed(folders["sd2"], tmp_path / "copy", "model_index.json", text_encoder=value)
    with pytest.raises(CheckpointError, match="text_encoder is a T5EncoderModel"):
        components_of(resolve(copy))


@pytest.mark.parametrize(
    ("family", "values", "said"),
    [
        ("sdxl", {"addition_embed_type": None}, "addition_embed_type is None"),
        ("sd2", {"addition_embed_type": "image"}, "addition_embed_type is 'image'"),
        ("sdxl", {"projection_class_embeddings_input_dim": 75}, "not the pooled text's 24 channels"),
        ("sd2", {"num_class_embeds": 4}, "a UNet with num_class_embeds = 4"),
        ("sd2", {"cross_attention_dim": 48}, "wants text of 48 channels"),
    ],
)
def test_a_unet_that_does_not_go_with_the_pipeline(
    folders: dict[str, Path], tmp_path: Path, family: str, values: dict[str, Any], said: str
) -> None:
    copy = changed(folders[family], tmp_path / "copy", "unet/config.json", **values)
    with pytest.raises(CheckpointError, match=said):
        components_of(resolve(copy))


def test_a_config_that_does_not_fit_its_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = changed(folders["sdxl"], tmp_path / "copy", "text_encoder_2/config.json", intermediate_size=48)
    with pytest.raises(CheckpointError, match="has shape"):
        named(copy)["text_encoder_2"].reference_module()


def test_a_component_without_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folders["sdxl"], tmp_path / "copy"))
    (copy / "text_encoder_2" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"'text_encoder_2' of .* has no safetensors weights"):
        resolve(copy).validate()
