"""T5 text encoders, shared by the families that read prompts with one (SD3, FLUX, PixArt, LTX-Video …)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporter.architectures._parts import adapter, expect_class
from exporter.architectures.base import Component, Size, TensorSpec
from exporter.checkpoints import Checkpoint

if TYPE_CHECKING:
    import torch
    from torch import nn

T5 = "T5EncoderModel"
EMBEDDING = "encoder.embed_tokens.weight"


def t5_text_encoder(checkpoint: Checkpoint, folder: str, native: Size, *, mask: bool = False) -> Component:
    """The component of a `T5EncoderModel` folder: `input_ids` → `last_hidden_state`, optimum's names.

    Args:
        native: Its `sequence` is the number of tokens that the pipeline pads prompts to.
        mask: The pipeline says which tokens are padding (`attention_mask`, int64, 1 = a token): PixArt and
            HunyuanDiT do; SD3, FLUX, CogView3 and LTX-Video let the padding be read.

    Raises:
        CheckpointError: There is no such part, or it is of another class.
    """
    expect_class(checkpoint, folder, (T5,))
    config = checkpoint.config(folder)
    tokens = ("batch", "sequence")
    inputs = [TensorSpec("input_ids", "int64", tokens)]
    if mask:
        inputs.append(TensorSpec("attention_mask", "int64", tokens))

    def construct() -> nn.Module:
        from transformers import T5Config, T5EncoderModel

        inner = T5EncoderModel(T5Config.from_dict(config))
        # The same module under two names: weights go by the one that the forward pass reads them by.
        object.__setattr__(inner, "shared", inner._modules.pop("shared"))
        return inner

    return Component(
        name=folder,
        folder=folder,
        checkpoint=checkpoint,
        class_name=T5,
        inputs=tuple(inputs),
        outputs=(TensorSpec("last_hidden_state", "float32", (*tokens, int(config["d_model"]))),),
        native=native,
        construct=construct,
        adapt=adapter("T5Encoder"),
        make_inputs={"input_ids": prompt_ids(config), "attention_mask": prompt_mask},
        renames=rename_t5,
    )


def rename_t5(name: str) -> str | None:
    """The embedding is stored as `shared`; some checkpoints have it once more under its other name."""
    return {"shared.weight": EMBEDDING, EMBEDDING: None}.get(name, name)


def prompt_ids(config: dict[str, Any]) -> Any:
    """Random token ids in the layout of T5's tokenizer: words, one end, then padding to the last place."""
    padding, end = int(config.get("pad_token_id") or 0), int(config.get("eos_token_id") or 1)

    def make(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
        import torch

        shape = spec.shape(size)
        ids = torch.randint(2, int(config["vocab_size"]), shape, generator=generator)
        ids[:, _words(shape)] = end
        ids[:, _words(shape) + 1 :] = padding
        return ids

    return make


def prompt_mask(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
    """Which of those tokens are not padding."""
    import torch

    mask = torch.zeros(spec.shape(size), dtype=torch.int64)
    mask[:, : _words(spec.shape(size)) + 1] = 1
    return mask


def _words(shape: tuple[int, ...]) -> int:
    return shape[1] // 2
