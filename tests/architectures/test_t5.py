"""T5 as a text encoder: the library's own module under optimum's names, with and without a mask."""

from __future__ import annotations

import json

import pytest
import torch

from exporter.architectures import Size
from exporter.architectures._t5 import t5_text_encoder
from exporter.checkpoints import Checkpoint, resolve
from exporter.errors import CheckpointError
from exporter.graph import build
from tests.tiny import make_t5, make_t5_tokenizer

NATIVE = Size(batch=2, height=64, width=64, sequence=200)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    make_t5(make_t5_tokenizer()).save_pretrained(folder / "text_encoder")
    parts = {"text_encoder": ["transformers", "T5EncoderModel"]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "SomePipeline", **parts}))
    return resolve(folder)


@pytest.mark.parametrize("mask", [False, True])
def test_the_module_is_the_librarys_bit_for_bit(checkpoint: Checkpoint, mask: bool) -> None:
    from transformers import T5EncoderModel

    component = t5_text_encoder(checkpoint, "text_encoder", NATIVE, mask=mask)
    assert [s.name for s in component.inputs] == ["input_ids", "attention_mask"][: 1 + mask]
    assert [s.name for s in component.outputs] == ["last_hidden_state"]
    inputs = component.example_inputs(NATIVE)
    with torch.no_grad():
        expected = T5EncoderModel.from_pretrained(checkpoint.root / "text_encoder")(**inputs)[0]
    (output,) = component.reference_module()(**inputs)
    assert torch.equal(output, expected)
    if mask:
        (unmasked,) = component.reference_module()(inputs["input_ids"], None)
        assert not torch.equal(output, unmasked)


def test_every_weight_has_one_name(checkpoint: Checkpoint) -> None:
    """The embedding is stored as `shared`, and is one tensor that two modules hold."""
    component = t5_text_encoder(checkpoint, "text_encoder", NATIVE)
    module = component.meta_module()
    assert {n for n, _ in module.named_parameters(remove_duplicate=False)} == set(component.weights)
    assert module.inner.shared is module.inner.encoder.embed_tokens


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("mask", [False, True])
def test_its_graph_has_every_weight(checkpoint: Checkpoint, mask: bool, dtype: str) -> None:
    component = t5_text_encoder(checkpoint, "text_encoder", NATIVE, mask=mask)
    graph = build(component, dtype=dtype)
    stored = {recipe.source.name for recipe in graph.weights.values()}
    assert stored == set(checkpoint.stored("text_encoder"))


def test_another_class_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="without a text_encoder_3"):
        t5_text_encoder(checkpoint, "text_encoder_3", NATIVE)
