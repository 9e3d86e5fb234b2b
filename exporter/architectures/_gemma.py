"""Gemma 2 as a text encoder: its last hidden states, under a mask that is causal and says which are padding.

The attention is what the library takes by default, PyTorch's own, which leaves out the softcapping of scores
that the config names (`attn_logit_softcapping`); so do diffusers' pipelines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporter.architectures._parts import adapter, expect_class
from exporter.architectures.base import Component, Size, TensorSpec
from exporter.checkpoints import Checkpoint

if TYPE_CHECKING:
    import torch
    from torch import nn

GEMMA2 = "Gemma2Model"


def gemma2_text_encoder(checkpoint: Checkpoint, folder: str, native: Size) -> Component:
    """The component of a `Gemma2Model` folder: `input_ids`, `attention_mask` → `last_hidden_state`.

    Args:
        native: Its `sequence` is the number of tokens that the pipeline pads prompts to.

    Raises:
        CheckpointError: There is no such part, or it is of another class.
    """
    expect_class(checkpoint, folder, (GEMMA2,))
    config = checkpoint.config(folder)
    tokens = ("batch", "sequence")

    def construct() -> nn.Module:
        from transformers import Gemma2Config, Gemma2Model

        return Gemma2Model(Gemma2Config.from_dict(config))

    return Component(
        name=folder,
        folder=folder,
        checkpoint=checkpoint,
        class_name=GEMMA2,
        inputs=(TensorSpec("input_ids", "int64", tokens), TensorSpec("attention_mask", "int64", tokens)),
        outputs=(TensorSpec("last_hidden_state", "float32", (*tokens, int(config["hidden_size"]))),),
        native=native,
        construct=construct,
        adapt=adapter("DecoderAsEncoder"),
        make_inputs={"input_ids": prompt_ids(config), "attention_mask": prompt_mask},
        renames=rename_gemma,
    )


def rename_gemma(name: str) -> str | None:
    """Weights saved with a language model's head have a prefix, and the head."""
    return None if name.startswith("lm_head.") else name.removeprefix("model.")


def prompt_ids(config: dict[str, Any]) -> Any:
    """Random token ids in the layout of Gemma's tokenizer: begin, words, then padding to the last place."""
    padding, begin = int(config.get("pad_token_id") or 0), int(config.get("bos_token_id") or 2)

    def make(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
        import torch

        shape = spec.shape(size)
        ids = torch.randint(4, int(config["vocab_size"]), shape, generator=generator)
        ids[:, 0] = begin
        ids[:, _words(shape) :] = padding
        return ids

    return make


def prompt_mask(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
    """Which of those tokens are not padding."""
    import torch

    mask = torch.zeros(spec.shape(size), dtype=torch.int64)
    mask[:, : _words(spec.shape(size))] = 1
    return mask


def _words(shape: tuple[int, ...]) -> int:
    return shape[1] // 2 + 1
