"""CLIP text encoders, shared by the Stable Diffusion families."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from exporter.architectures.base import Component, Size, TensorSpec
from exporter.checkpoints import Checkpoint


class TextEncoder(nn.Module):
    """`input_ids` → (`last_hidden_state`, `pooler_output`)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.inner(input_ids=input_ids, return_dict=False)
        return output[0], output[1]


def rename_text(name: str) -> str | None:
    """Checkpoints saved by old transformers carry `position_ids`, a buffer that is computed today."""
    return None if name.endswith("embeddings.position_ids") else name


def prompt_ids(config: dict[str, Any]) -> Any:
    """Random token ids in the layout of CLIP's tokenizer: begin, words, then end to the last place."""

    def make(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
        shape = spec.shape(size)
        vocabulary = int(config["vocab_size"])
        ids = torch.randint(0, max(vocabulary - 2, 1), shape, generator=generator)
        ids[:, 0] = vocabulary - 2
        ids[:, shape[1] // 2 :] = vocabulary - 1
        return ids

    return make


def clip_text_encoder(checkpoint: Checkpoint, folder: str, native: Size) -> Component:
    """The component of a `CLIPTextModel` folder."""
    config = checkpoint.config(folder)
    hidden = int(config["hidden_size"])

    def construct() -> nn.Module:
        from transformers import CLIPTextConfig, CLIPTextModel

        return CLIPTextModel(CLIPTextConfig.from_dict(config))

    return Component(
        name=folder,
        folder=folder,
        checkpoint=checkpoint,
        class_name="CLIPTextModel",
        inputs=(TensorSpec("input_ids", "int64", ("batch", "sequence")),),
        outputs=(
            TensorSpec("last_hidden_state", "float32", ("batch", "sequence", hidden)),
            TensorSpec("pooler_output", "float32", ("batch", hidden)),
        ),
        native=native,
        construct=construct,
        adapt=TextEncoder,
        make_inputs={"input_ids": prompt_ids(config)},
        renames=rename_text,
    )
