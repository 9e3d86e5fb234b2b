"""Sana: Gemma 2 in a graph, what the pipeline gives each part, the library's own modules, misfits by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter.architectures import Component, Size, components_of
from exporter.architectures._gemma import gemma2_text_encoder
from exporter.checkpoints import resolve
from exporter.conversion import make_plan
from exporter.errors import CheckpointError, UnsupportedError, UsageError
from exporter.graph import build, write
from exporter.pipeline import from_checkpoint, paint
from tests.families import make
from tests.tiny import make_gemma, make_gemma_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("sana", tmp_path_factory.mktemp("sana") / "sana")


def named(folder: Path) -> dict[str, Component]:
    return {c.name: c for c in components_of(resolve(folder))}


def changed(folder: Path, copy: Path, file: str, **values: Any) -> Path:
    shutil.copytree(folder, copy)
    content = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps(content | values))
    return copy


def test_inputs_and_sizes(folder: Path) -> None:
    parts = named(folder)
    assert [s.name for s in parts["text_encoder"].inputs] == ["input_ids", "attention_mask"]
    assert [s.name for s in parts["transformer"].inputs] == [
        "hidden_states", "encoder_hidden_states", "encoder_attention_mask", "timestep",
    ]  # fmt: skip
    assert parts["vae_encoder"].outputs[0].name == "latent_sample"  # optimum's name of what needs no drawing
    assert parts["vae_decoder"].native == Size(2, 128, 128, 300, 32)


def test_modules_are_the_librarys(folder: Path) -> None:
    from diffusers import AutoencoderDC, SanaTransformer2DModel
    from transformers import Gemma2Model

    parts = named(folder)
    size = Size(2, 96, 64, 20, 32)
    given = {name: part.example_inputs(size, seed=3) for name, part in parts.items()}
    vae = AutoencoderDC.from_pretrained(folder / "vae")
    with torch.no_grad():
        expected = {
            "text_encoder": Gemma2Model.from_pretrained(folder / "text_encoder")(**given["text_encoder"])[0],
            "transformer": SanaTransformer2DModel.from_pretrained(folder / "transformer")(
                **given["transformer"], return_dict=False
            )[0],
            "vae_decoder": vae.decode(given["vae_decoder"]["latent_sample"]).sample,
            "vae_encoder": vae.encode(given["vae_encoder"]["sample"]).latent,
        }
        for name, part in parts.items():
            close = {"rtol": 0.0, "atol": 2e-5}  # kernels may round by where weights lie in memory
            torch.testing.assert_close(part.reference_module()(**given[name])[0], expected[name], **close)
        inputs = given["transformer"]
        unmasked = inputs | {"encoder_attention_mask": torch.ones_like(inputs["encoder_attention_mask"])}
        for other in (unmasked, inputs | {"timestep": inputs["timestep"] * 0.5}):
            changed = parts["transformer"].reference_module()(**other)[0]
            assert not torch.equal(changed, expected["transformer"])


@pytest.mark.parametrize("window", [6, 4096])
def test_gemmas_masks_in_a_graph(tmp_path: Path, window: int) -> None:
    """Causal, with a window in every other layer, and without padding: at lengths that were not traced."""
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    make_gemma(make_gemma_tokenizer(), window=window).save_pretrained(tmp_path / "text_encoder")
    index = {"_class_name": "SanaPipeline", "text_encoder": ["transformers", "Gemma2Model"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    component = gemma2_text_encoder(resolve(tmp_path), "text_encoder", Size(2, 64, 64, 30))
    graph = build(component)
    assert graph.route == "direct"
    session = onnxruntime.InferenceSession(str(write(graph, tmp_path / "graph")[0]))
    reference = component.reference_module()
    for rows, tokens in ((2, 30), (1, 7), (3, 41)):
        inputs = component.example_inputs(Size(rows, 64, 64, tokens), seed=5)
        if window < tokens:  # or a token of the padding would see nothing at all
            inputs["attention_mask"][:] = 1
            inputs["attention_mask"][0, 2] = 0
        (result,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        expected = reference(**inputs)[0].numpy()
        assert np.linalg.norm(result - expected) <= 2e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("part", ["text_encoder", "vae"])
def test_a_part_that_is_missing(folder: Path, tmp_path: Path, part: str) -> None:
    copy = changed(folder, tmp_path / "copy", "model_index.json", **{part: [None, None]})
    with pytest.raises(CheckpointError, match=f"without a {part}"):
        components_of(resolve(copy))


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("transformer/config.json", {"caption_channels": 64}, "tokens of text_encoder .* give 24"),
        ("transformer/config.json", {"guidance_embeds": True}, "is for Sana-Sprint"),
        ("vae/config.json", {"latent_channels": 4}, "the VAE's latents have 4"),
        ("vae/config.json", {"decoder_block_out_channels": [8, 16]}, "by different factors"),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderKL"]}, "vae is a AutoencoderKL"),
        ("model_index.json", {"text_encoder": ["transformers", "T5EncoderModel"]}, "is a T5EncoderModel"),
    ],
)
def test_parts_that_do_not_fit(
    folder: Path, tmp_path: Path, file: str, values: dict[str, Any], said: str
) -> None:
    copy = changed(folder, tmp_path / "copy", file, **values)
    with pytest.raises(CheckpointError, match=said):
        components_of(resolve(copy))


def test_sizes(folder: Path) -> None:
    pipeline = from_checkpoint(str(folder))
    with pytest.raises(UsageError, match="multiples of 32"):
        paint(pipeline, ["a"], steps=1, height=48, width=64)
    assert paint(pipeline, ["a"], steps=1, height=64, width=96)[0].size == (96, 64)


def test_a_prompt_of_one_length_is_not_baked(folder: Path, tmp_path: Path) -> None:
    """The negative prompt comes without the instruction, so the text encoder is called at two lengths."""
    with pytest.raises(UsageError, match="given prompts of several lengths") as error:
        make_plan(str(folder), "onnx", tmp_path / "out", {"static": "1x64x64"})
    assert "--component" in (error.value.hint or "")
    make_plan(str(folder), "onnx", tmp_path / "out", {"static": "1x64x64"}, components=["transformer"])


def test_core_ml_has_no_place_for_it(folder: Path) -> None:
    from exporter.targets.coreml.layout import check_known

    with pytest.raises(UnsupportedError, match=r"know no text_encoder .Gemma2Model., which a SanaPipeline"):
        check_known(named(folder)["text_encoder"])
