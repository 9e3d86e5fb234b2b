"""Stable Diffusion 1.x: CLIP text encoder, UNet2DConditionModel, AutoencoderKL."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from exporter.architectures._text import clip_text_encoder
from exporter.architectures._vae import rename_vae, vae_decoder, vae_encoder, vae_factor
from exporter.architectures.base import Component, Size, TensorSpec
from exporter.checkpoints import Checkpoint


class UNet(nn.Module):
    """(`sample`, `timestep`, `encoder_hidden_states`) → `out_sample`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor]:
        return (self.inner(sample, timestep, encoder_hidden_states, return_dict=False)[0],)


def components(checkpoint: Checkpoint) -> list[Component]:
    """The four components, in the order in which a pipeline uses them."""
    native = native_size(checkpoint)
    return [
        clip_text_encoder(checkpoint, "text_encoder", native),
        unet(checkpoint, "unet", native),
        vae_decoder(checkpoint, "vae", native),
        vae_encoder(checkpoint, "vae", native),
    ]


def native_size(checkpoint: Checkpoint) -> Size:
    """The training size: the UNet's `sample_size` times the VAE's factor."""
    factor = vae_factor(checkpoint.config("vae"))
    sample = checkpoint.config("unet").get("sample_size") or 64
    height, width = (sample, sample) if isinstance(sample, int) else sample
    tokens = int(checkpoint.config("text_encoder").get("max_position_embeddings", 77))
    return Size(batch=2, height=height * factor, width=width * factor, sequence=tokens, factor=factor)


def unet(checkpoint: Checkpoint, folder: str, native: Size) -> Component:
    """The component of a `UNet2DConditionModel` folder without added conditions."""
    config = checkpoint.config(folder)
    cross = config["cross_attention_dim"]
    cross = int(cross[0]) if isinstance(cross, list) else int(cross)
    latent = ("latent_height", "latent_width")

    def construct() -> Any:
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel.from_config(config)

    return Component(
        name=folder,
        folder=folder,
        checkpoint=checkpoint,
        class_name="UNet2DConditionModel",
        inputs=(
            TensorSpec("sample", "float32", ("batch", int(config["in_channels"]), *latent)),
            # float32, so that schedulers with fractional timesteps (Euler, LMS) keep their value.
            TensorSpec("timestep", "float32", ()),
            TensorSpec("encoder_hidden_states", "float32", ("batch", "sequence", cross)),
        ),
        outputs=(TensorSpec("out_sample", "float32", ("batch", int(config["out_channels"]), *latent)),),
        native=native,
        construct=construct,
        adapt=UNet,
        make_inputs={"timestep": _timestep},
        renames=rename_vae,
    )


def _timestep(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
    value = torch.randint(1, 1000, (), generator=generator)
    return value.to(getattr(torch, spec.dtype))
