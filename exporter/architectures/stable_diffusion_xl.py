"""Stable Diffusion XL: two CLIP text encoders, a UNet with added conditions, AutoencoderKL.

Podell et al., SDXL, 2023 (https://arxiv.org/abs/2307.01952), section 2: the UNet sees the last but one hidden
states of both encoders side by side, the second one's pooled embedding, and six numbers about the picture
(original size, crop, target size).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from exporter.architectures import stable_diffusion
from exporter.architectures._text import clip_text_layers
from exporter.architectures._vae import vae_decoder, vae_encoder, vae_factor
from exporter.architectures.base import Component, Size, TensorSpec
from exporter.checkpoints import Checkpoint

TIME_IDS = 6
"""Height and width of the original, top and left of the crop, height and width wanted."""


class UNet(nn.Module):
    """(`sample`, `timestep`, `encoder_hidden_states`, `text_embeds`, `time_ids`) → `out_sample`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor,
        time_ids: torch.Tensor,
    ) -> tuple[torch.Tensor]:
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        output = self.inner(
            sample, timestep, encoder_hidden_states, added_cond_kwargs=added, return_dict=False
        )
        return (output[0],)


def components(checkpoint: Checkpoint) -> list[Component]:
    """The components that the checkpoint has, in the order in which a pipeline uses them."""
    encoders = [name for name in ("text_encoder", "text_encoder_2") if name in checkpoint.component_classes]
    native = native_size(checkpoint, encoders)
    return [
        *(
            clip_text_layers(checkpoint, folder, native, checkpoint.component_classes[folder][1])
            for folder in encoders
        ),
        unet(checkpoint, "unet", native),
        vae_decoder(checkpoint, "vae", native),
        vae_encoder(checkpoint, "vae", native),
    ]


def native_size(checkpoint: Checkpoint, encoders: Sequence[str]) -> Size:
    """The training size: the UNet's `sample_size` (128 unless it says) times the VAE's factor."""
    factor = vae_factor(checkpoint.config("vae"))
    sample = checkpoint.config("unet").get("sample_size") or 128
    height, width = (sample, sample) if isinstance(sample, int) else sample
    tokens = [int(checkpoint.config(name).get("max_position_embeddings", 77)) for name in encoders]
    return Size(2, height * factor, width * factor, min(tokens, default=77), factor)


def unet(checkpoint: Checkpoint, folder: str, native: Size) -> Component:
    """The component of a `UNet2DConditionModel` folder that takes a pooled text embedding and time ids."""
    config = checkpoint.config(folder)
    embedded = int(config["projection_class_embeddings_input_dim"])
    pooled = embedded - TIME_IDS * int(config["addition_time_embed_dim"])
    plain = stable_diffusion.unet(checkpoint, folder, native)
    return replace(
        plain,
        inputs=(
            *plain.inputs,
            TensorSpec("text_embeds", "float32", ("batch", pooled)),
            TensorSpec("time_ids", "float32", ("batch", TIME_IDS)),
        ),
        adapt=UNet,
        make_inputs={**plain.make_inputs, "time_ids": _time_ids},
    )


def _time_ids(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
    """The picture whole and uncropped, at varied original sizes."""
    rows = spec.shape(size)[0]
    original = torch.randint(size.height // 2, 2 * size.height, (rows, 2), generator=generator)
    wanted = torch.tensor([0, 0, size.height, size.width]).expand(rows, 4)
    return torch.cat([original, wanted], 1).to(getattr(torch, spec.dtype))
