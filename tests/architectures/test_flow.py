"""SD3 and FLUX: what pipelines give a transformer, the library's own modules, and misfits by name."""

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
from tests.families import make

FAMILIES = ("sd3", "sd35", "flux", "flux_schnell", "flux_fill")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("flow")
    return {family: make(family, root / family) for family in FAMILIES}


def named(folder: Path) -> dict[str, Component]:
    return {c.name: c for c in components_of(resolve(folder))}


def changed(folder: Path, copy: Path, file: str, **values: Any) -> Path:
    shutil.copytree(folder, copy)
    content = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps(content | values))
    return copy


def test_inputs_of_each_transformer(folders: dict[str, Path]) -> None:
    def inputs(family: str) -> dict[str, tuple[Any, ...]]:
        return {s.name: s.dims for s in named(folders[family])["transformer"].inputs}

    usual = ["hidden_states", "encoder_hidden_states", "pooled_projections", "timestep"]
    assert list(inputs("sd3")) == list(inputs("sd35")) == usual
    assert inputs("sd3")["hidden_states"] == ("batch", 16, "latent_height", "latent_width")
    assert list(inputs("flux")) == [*usual, "img_ids", "txt_ids", "guidance"]
    assert list(inputs("flux_schnell")) == [*usual, "img_ids", "txt_ids"]
    assert inputs("flux")["img_ids"] == ("image_tokens", 3)
    assert inputs("flux_fill")["hidden_states"] == ("batch", "image_tokens", 384)
    for family in FAMILIES:
        (output,) = named(folders[family])["transformer"].outputs
        assert output.name == "out_hidden_states" and set(output.dims) & {16, 64}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_transformer_is_the_librarys_bit_for_bit(folders: dict[str, Path], family: str) -> None:
    import diffusers

    component = named(folders[family])["transformer"]
    inputs = component.example_inputs(Size(2, 64, 96, 20), seed=3)
    kind = getattr(diffusers, component.class_name)
    theirs = kind.from_pretrained(folders[family] / "transformer")
    with torch.no_grad():
        expected = theirs(**inputs).sample
        assert torch.equal(component.reference_module()(**inputs)[0], expected)
        for name in set(inputs) - {"txt_ids"}:
            other = inputs | {name: inputs[name] * 0.5}
            assert not torch.equal(component.reference_module()(**other)[0], expected), name


def test_tokens_of_a_picture_have_places(folders: dict[str, Path]) -> None:
    component = named(folders["flux"])["transformer"]
    places = component.example_inputs(Size(1, 64, 96, 4))["img_ids"]
    assert places.shape == (24, 3)
    assert places[0].tolist() == [0, 0, 0] and places[7].tolist() == [0, 1, 1]
    assert places[-1].tolist() == [0, 3, 5]


def test_a_baked_transformer_has_two_rows_a_picture_only_under_guidance(folders: dict[str, Path]) -> None:
    assert component_size(named(folders["sd3"])["transformer"], (1, 64, 64)).batch == 2
    assert component_size(named(folders["flux"])["transformer"], (1, 64, 64)).batch == 1


@pytest.mark.parametrize(("family", "part"), [("sd3", "text_encoder_2"), ("flux", "text_encoder_2")])
def test_a_part_that_is_missing(folders: dict[str, Path], tmp_path: Path, family: str, part: str) -> None:
    copy = changed(folders[family], tmp_path / "copy", "model_index.json", **{part: [None, None]})
    with pytest.raises(CheckpointError, match=f"without a {part}"):
        components_of(resolve(copy))


def test_t5_may_be_left_out(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = changed(folders["sd3"], tmp_path / "copy", "model_index.json", text_encoder_3=[None, None])
    assert "text_encoder_3" not in named(copy)


@pytest.mark.parametrize(
    ("family", "file", "values", "said"),
    [
        ("sd3", "transformer", {"pooled_projection_dim": 64}, "wants 64 channels .* give 48"),
        ("sd3", "transformer", {"joint_attention_dim": 96}, "tokens of text_encoder_3 .* give 64"),
        ("flux", "transformer", {"pooled_projection_dim": 64}, "pooled text of text_encoder .* give 32"),
        ("flux", "transformer", {"joint_attention_dim": 96}, "tokens of text_encoder_2 .* give 32"),
        ("flux", "vae", {"latent_channels": 4}, "gives 64 channels a token, the VAE's latents have 16"),
    ],
)
def test_parts_that_do_not_fit(
    folders: dict[str, Path], tmp_path: Path, family: str, file: str, values: dict[str, Any], said: str
) -> None:
    copy = changed(folders[family], tmp_path / "copy", f"{file}/config.json", **values)
    with pytest.raises(CheckpointError, match=said):
        components_of(resolve(copy))
