"""PixArt: what its pipelines give the transformer, the library's own module, and misfits by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter.architectures import Component, Size, components_of
from exporter.checkpoints import resolve
from exporter.conversion import make_plan
from exporter.errors import CheckpointError, UnsupportedError, UsageError
from exporter.pipeline import from_checkpoint, paint
from exporter.targets.base import component_size
from tests.families import make

FAMILIES = ("pixart_sigma", "pixart_alpha")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pixart")
    return {family: make(family, root / family) for family in FAMILIES}


def named(folder: Path) -> dict[str, Component]:
    return {c.name: c for c in components_of(resolve(folder))}


def changed(folder: Path, copy: Path, file: str, without: str = "", **values: Any) -> Path:
    shutil.copytree(folder, copy)
    content = json.loads((copy / file).read_text()) | values
    content.pop(without, None)
    (copy / file).write_text(json.dumps(content))
    return copy


def test_inputs_of_each_transformer(folders: dict[str, Path]) -> None:
    def inputs(family: str) -> dict[str, tuple[Any, ...]]:
        return {s.name: s.dims for s in named(folders[family])["transformer"].inputs}

    usual = ["hidden_states", "encoder_hidden_states", "encoder_attention_mask", "timestep"]
    assert list(inputs("pixart_sigma")) == usual
    assert list(inputs("pixart_alpha")) == [*usual, "resolution", "aspect_ratio"]
    for family, tokens in zip(FAMILIES, (300, 120), strict=True):
        parts = named(folders[family])
        assert parts["transformer"].outputs[0].dims[1] == 8  # a variance beside the noise
        assert {part.native.sequence for part in parts.values()} == {tokens}
        assert component_size(parts["transformer"], (1, 64, 64)).batch == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_the_transformer_is_the_librarys_bit_for_bit(folders: dict[str, Path], family: str) -> None:
    from diffusers import PixArtTransformer2DModel

    component = named(folders[family])["transformer"]
    size = Size(2, 64, 96, 20, component.native.factor)
    inputs = component.example_inputs(size, seed=3)
    given: dict[str, Any] = dict(inputs)
    if family == "pixart_alpha":
        assert inputs["resolution"].tolist() == [[64, 96]] * 2
        given["added_cond_kwargs"] = {n: given.pop(n) for n in ("resolution", "aspect_ratio")}
    theirs = PixArtTransformer2DModel.from_pretrained(folders[family] / "transformer")
    with torch.no_grad():
        expected = theirs(**given).sample
        assert torch.equal(component.reference_module()(**inputs)[0], expected)
        others = {name: value * 0.5 for name, value in inputs.items() if name != "encoder_attention_mask"}
        others["encoder_attention_mask"] = torch.ones_like(inputs["encoder_attention_mask"])
        for name, value in others.items():
            assert not torch.equal(component.reference_module()(**inputs | {name: value})[0], expected), name


def test_the_class_of_older_checkpoints(folders: dict[str, Path], tmp_path: Path) -> None:
    """The repositories of PixArt itself name the class that was split up later, with its many settings."""
    old = {"_class_name": "Transformer2DModel", "num_vector_embeds": None, "only_cross_attention": False}
    copy = changed(folders["pixart_sigma"], tmp_path / "old", "transformer/config.json", **old)
    index = copy / "model_index.json"
    content = json.loads(index.read_text()) | {"transformer": ["diffusers", "Transformer2DModel"]}
    index.write_text(json.dumps(content))
    mine, theirs = named(copy)["transformer"], named(folders["pixart_sigma"])["transformer"]
    inputs = theirs.example_inputs(theirs.native)
    assert torch.equal(mine.reference_module()(**inputs)[0], theirs.reference_module()(**inputs)[0])
    settings = {"steps": 2, "seed": 1}
    pictures = [paint(from_checkpoint(str(f)), ["a"], **settings)[0] for f in (copy, folders["pixart_sigma"])]
    assert np.array_equal(*map(np.asarray, pictures))


@pytest.mark.parametrize("part", ["text_encoder", "transformer", "vae"])
def test_a_part_that_is_missing(folders: dict[str, Path], tmp_path: Path, part: str) -> None:
    copy = changed(folders["pixart_sigma"], tmp_path / "copy", "model_index.json", **{part: [None, None]})
    with pytest.raises(CheckpointError, match=f"without a {part}"):
        components_of(resolve(copy))


@pytest.mark.parametrize(
    ("family", "file", "values", "said"),
    [
        ("pixart_sigma", "transformer", {"caption_channels": 64}, "tokens of text_encoder .* give 32"),
        ("pixart_sigma", "transformer", {"norm_type": "ada_norm_zero"}, "'ada_norm_zero' is another model"),
        ("pixart_sigma", "transformer", {"out_channels": 6}, "takes 4 channels and gives 6"),
        ("pixart_sigma", "vae", {"latent_channels": 16}, "the VAE's latents have 16"),
        ("pixart_sigma", "transformer", {"use_additional_conditions": True}, "takes .* does not give it"),
        ("pixart_alpha", "transformer", {"use_additional_conditions": False}, "does not take .* gives it"),
    ],
)
def test_parts_that_do_not_fit(
    folders: dict[str, Path], tmp_path: Path, family: str, file: str, values: dict[str, Any], said: str
) -> None:
    copy = changed(folders[family], tmp_path / "copy", f"{file}/config.json", **values)
    with pytest.raises(CheckpointError, match=said):
        components_of(resolve(copy))


def test_sizes(folders: dict[str, Path]) -> None:
    pipeline = from_checkpoint(str(folders["pixart_sigma"]))
    for height, width in ((40, 64), (64, 72)):
        with pytest.raises(UsageError, match="multiples of 16"):
            paint(pipeline, ["a"], steps=1, height=height, width=width)
    picture = paint(pipeline, ["a"], steps=1, height=48, width=96)[0]
    assert picture.size == (96, 48)  # as asked for: no size of the library's own choice, scaled


def test_a_baked_size_that_patches_do_not_divide(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be multiples of 16") as error:
        make_plan(str(folders["pixart_sigma"]), "onnx", tmp_path / "out", {"static": "1x40x64"})
    assert error.value.hint in ("Try 1x32x64.", "Try 1x48x64.")


def test_core_ml_has_no_place_for_t5(folders: dict[str, Path]) -> None:
    from exporter.targets.coreml.layout import check_known

    with pytest.raises(UnsupportedError, match=r"know no text_encoder .T5EncoderModel., which a PixArtSigma"):
        check_known(named(folders["pixart_sigma"])["text_encoder"])
