"""BERT text encoders (HunyuanDiT)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporter.architectures._parts import adapter, expect_class
from exporter.architectures._t5 import prompt_ids, prompt_mask
from exporter.architectures.base import Component, Size, TensorSpec
from exporter.checkpoints import Checkpoint

if TYPE_CHECKING:
    from torch import nn

BERT = "BertModel"


def bert_text_encoder(checkpoint: Checkpoint, folder: str, native: Size) -> Component:
    """The component of a `BertModel` folder: (`input_ids`, `attention_mask`) → `last_hidden_state`.

    The pooler that files carry is left out: pipelines read the tokens only.

    Args:
        native: Its `sequence` is the number of tokens that the pipeline pads prompts to.

    Raises:
        CheckpointError: There is no such part, or it is of another class.
    """
    expect_class(checkpoint, folder, (BERT,))
    config = checkpoint.config(folder)
    tokens = ("batch", "sequence")

    def construct() -> nn.Module:
        from transformers import BertConfig, BertModel

        return BertModel(BertConfig.from_dict(config), add_pooling_layer=False)

    return Component(
        name=folder,
        folder=folder,
        checkpoint=checkpoint,
        class_name=BERT,
        inputs=(TensorSpec("input_ids", "int64", tokens), TensorSpec("attention_mask", "int64", tokens)),
        outputs=(TensorSpec("last_hidden_state", "float32", (*tokens, int(config["hidden_size"]))),),
        native=native,
        construct=construct,
        adapt=adapter("T5Encoder"),
        make_inputs={"input_ids": prompt_ids(config), "attention_mask": prompt_mask},
        renames=rename_bert,
    )


def rename_bert(name: str) -> str | None:
    """Old files carry `position_ids`, a buffer that is computed today; the pooler is not exported."""
    return None if name.endswith("embeddings.position_ids") or name.startswith("pooler.") else name
