"""CogView3-Plus: its transformer is the library's bit for bit, and misfits are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from exporter.architectures import FAMILIES, Component, Size, components_of
from exporter.checkpoints import resolve
from exporter.errors import CheckpointError
from tests.architectures.test_families import changed
from tests.families import make

PARTS = ["text_encoder", "transformer", "vae_decoder", "vae_encoder"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("cogview3", tmp_path_factory.mktemp("family") / "cogview3")


def named(folder: Path) -> dict[str, Component]:
    return {c.name: c for c in components_of(resolve(folder))}


def test_it_is_known() -> None:
    assert FAMILIES["CogView3PlusPipeline"] == "exporter.architectures.cogview3"


def test_components_compute_what_they_declare(folder: Path) -> None:
    found = components_of(resolve(folder))
    assert [component.name for component in found] == PARTS
    for component in found:
        with torch.no_grad():
            outputs = component.reference_module()(**component.example_inputs(component.native))
        declared = [spec.shape(component.native) for spec in component.outputs]
        assert [tuple(output.shape) for output in outputs] == declared


def test_the_transformer_is_the_librarys_bit_for_bit(folder: Path) -> None:
    from diffusers import CogView3PlusTransformer2DModel

    component = named(folder)["transformer"]
    inputs = component.example_inputs(Size(2, 64, 96, 20), seed=3)
    theirs = CogView3PlusTransformer2DModel.from_pretrained(folder / "transformer")
    with torch.no_grad():
        expected = theirs(**inputs).sample
        ours = component.reference_module()
        assert torch.equal(ours(**inputs)[0], expected)
        for name in inputs:
            other = inputs | {name: inputs[name] + 1}
            assert not torch.equal(ours(**other)[0], expected), name


def test_a_missing_text_encoder_is_named(folder: Path, tmp_path: Path) -> None:
    copy = changed(folder, tmp_path / "copy", "model_index.json", text_encoder=[None, None])
    with pytest.raises(CheckpointError, match="without a text_encoder"):
        components_of(resolve(copy))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text_embed_dim": 99}, "99 channels .* the tokens of text_encoder of .* give 32"),
        ({"in_channels": 4}, "takes 4 channels .* latents have 16"),
    ],
)
def test_misfits_are_named(folder: Path, tmp_path: Path, values: dict[str, Any], message: str) -> None:
    copy = changed(folder, tmp_path / "copy", "transformer/config.json", **values)
    assert json.loads((copy / "transformer/config.json").read_text()).items() >= values.items()
    with pytest.raises(CheckpointError, match=message):
        components_of(resolve(copy))
