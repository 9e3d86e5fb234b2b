"""CLIP text encoders, shared by the Stable Diffusion families."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporter.architectures._parts import adapter, expect_class
from exporter.architectures.base import Component, Size, TensorSpec
from exporter.checkpoints import Checkpoint

if TYPE_CHECKING:
    import torch
    from torch import nn

CLIP = "CLIPTextModel"
PROJECTED = "CLIPTextModelWithProjection"


def rename_text(name: str) -> str | None:
    """Checkpoints saved by old transformers carry `position_ids`, a buffer that is computed today."""
    return None if name.endswith("embeddings.position_ids") else name


def prompt_ids(config: dict[str, Any]) -> Any:
    """Random token ids in the layout of CLIP's tokenizer: begin, words, then end to the last place."""

    def make(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
        import torch

        shape = spec.shape(size)
        vocabulary = int(config["vocab_size"])
        ids = torch.randint(0, max(vocabulary - 2, 1), shape, generator=generator)
        ids[:, 0] = vocabulary - 2
        ids[:, shape[1] // 2 :] = vocabulary - 1
        return ids

    return make


def clip_text_encoder(
    checkpoint: Checkpoint, folder: str, native: Size, *, hidden_states: bool = False
) -> Component:
    """The component of a `CLIPTextModel` or `CLIPTextModelWithProjection` folder.

    Args:
        hidden_states: Also give `hidden_states.0` (the embeddings) to `hidden_states.N` (what the last
            layer gives, before the final norm): the names and the order of optimum's exports.
    """
    config = checkpoint.config(folder)
    kind = expect_class(checkpoint, folder, (CLIP, PROJECTED))
    hidden = int(config["hidden_size"])
    states = [TensorSpec("last_hidden_state", "float32", ("batch", "sequence", hidden))]
    if kind == PROJECTED:
        states.insert(0, TensorSpec("text_embeds", "float32", ("batch", int(config["projection_dim"]))))
    else:
        states.append(TensorSpec("pooler_output", "float32", ("batch", hidden)))
    if hidden_states:
        states += [
            TensorSpec(f"hidden_states.{layer}", "float32", ("batch", "sequence", hidden))
            for layer in range(int(config["num_hidden_layers"]) + 1)
        ]

    def construct() -> nn.Module:
        import transformers

        return getattr(transformers, kind)(transformers.CLIPTextConfig.from_dict(config))

    return Component(
        name=folder,
        folder=folder,
        checkpoint=checkpoint,
        class_name=kind,
        inputs=(TensorSpec("input_ids", "int64", ("batch", "sequence")),),
        outputs=tuple(states),
        native=native,
        construct=construct,
        adapt=adapter("TextEncoder", hidden_states=hidden_states),
        make_inputs={"input_ids": prompt_ids(config)},
        renames=rename_text,
    )
