"""CLIP text encoders, shared by the Stable Diffusion families."""

from __future__ import annotations

from collections.abc import Callable
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


class AllLayers(nn.Module):
    """`input_ids` → the encoder's two outputs, then the hidden states of embedding and layers."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.inner(input_ids=input_ids, output_hidden_states=True)
        return (output[0], output[1], *output.hidden_states)


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
    hidden = int(checkpoint.config(folder)["hidden_size"])
    outputs = (
        TensorSpec("last_hidden_state", "float32", ("batch", "sequence", hidden)),
        TensorSpec("pooler_output", "float32", ("batch", hidden)),
    )
    return _component(checkpoint, folder, native, "CLIPTextModel", outputs, TextEncoder)


def clip_text_layers(checkpoint: Checkpoint, folder: str, native: Size, class_name: str) -> Component:
    """The component of a `CLIPTextModel` or `CLIPTextModelWithProjection` folder with every hidden state.

    SDXL takes the last but one. Names and order are those of optimum's exports, whose clients ask for all:
    `hidden_states.0` is the embedding.
    """
    config = checkpoint.config(folder)
    hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    last = TensorSpec("last_hidden_state", "float32", ("batch", "sequence", hidden))
    if class_name == "CLIPTextModelWithProjection":
        first = (TensorSpec("text_embeds", "float32", ("batch", int(config["projection_dim"]))), last)
    else:
        first = (last, TensorSpec("pooler_output", "float32", ("batch", hidden)))
    states = (
        TensorSpec(f"hidden_states.{number}", "float32", ("batch", "sequence", hidden))
        for number in range(layers + 1)
    )
    return _component(checkpoint, folder, native, class_name, (*first, *states), AllLayers)


def _component(
    checkpoint: Checkpoint,
    folder: str,
    native: Size,
    class_name: str,
    outputs: tuple[TensorSpec, ...],
    adapt: Callable[[nn.Module], nn.Module],
) -> Component:
    config = checkpoint.config(folder)

    def construct() -> nn.Module:
        import transformers

        built: nn.Module = getattr(transformers, class_name)(transformers.CLIPTextConfig.from_dict(config))
        return built

    return Component(
        name=folder,
        folder=folder,
        checkpoint=checkpoint,
        class_name=class_name,
        inputs=(TensorSpec("input_ids", "int64", ("batch", "sequence")),),
        outputs=outputs,
        native=native,
        construct=construct,
        adapt=adapt,
        make_inputs={"input_ids": prompt_ids(config)},
        renames=rename_text,
    )
