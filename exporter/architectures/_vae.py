"""AutoencoderKL as two components: decoder and encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporter.architectures._parts import adapter, expect_class
from exporter.architectures.base import Component, Size, TensorSpec
from exporter.checkpoints import Checkpoint

if TYPE_CHECKING:
    import torch
    from torch import nn

# Attention weights were renamed in diffusers 0.12; the Hub is full of older files.
OLD_ATTENTION = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}


def rename_vae(name: str) -> str | None:
    for old, new in OLD_ATTENTION.items():
        if ".attentions." in name and old in name:
            return name.replace(old, new)
    return name


def vae_factor(config: dict[str, Any]) -> int:
    """Pixels per latent cell: each block but the last halves the picture."""
    return int(2 ** (len(config["block_out_channels"]) - 1))


def vae_components(checkpoint: Checkpoint, native: Size) -> list[Component]:
    """`vae_decoder` and `vae_encoder` of the folder `vae`.

    Raises:
        CheckpointError: There is none, or it is of another class.
    """
    expect_class(checkpoint, "vae", ("AutoencoderKL",))
    return [vae_decoder(checkpoint, "vae", native), vae_encoder(checkpoint, "vae", native)]


def vae_decoder(checkpoint: Checkpoint, folder: str, native: Size) -> Component:
    """The decoding half of the `AutoencoderKL` in `folder`."""
    config = checkpoint.config(folder)
    return Component(
        name="vae_decoder",
        folder=folder,
        checkpoint=checkpoint,
        class_name="AutoencoderKL",
        inputs=(
            TensorSpec(
                "latent_sample",
                "float32",
                ("batch", int(config["latent_channels"]), "latent_height", "latent_width"),
            ),
        ),
        outputs=(TensorSpec("sample", "float32", ("batch", int(config["out_channels"]), "height", "width")),),
        native=native,
        construct=lambda: _construct(config),
        adapt=adapter("VaeDecoder"),
        used=("decoder.", "post_quant_conv."),
        renames=rename_vae,
    )


def vae_encoder(checkpoint: Checkpoint, folder: str, native: Size) -> Component:
    """The encoding half of the `AutoencoderKL` in `folder`."""
    config = checkpoint.config(folder)
    return Component(
        name="vae_encoder",
        folder=folder,
        checkpoint=checkpoint,
        class_name="AutoencoderKL",
        inputs=(TensorSpec("sample", "float32", ("batch", int(config["in_channels"]), "height", "width")),),
        outputs=(
            TensorSpec(
                "latent_parameters",
                "float32",
                ("batch", 2 * int(config["latent_channels"]), "latent_height", "latent_width"),
            ),
        ),
        native=native,
        construct=lambda: _construct(config),
        adapt=adapter("VaeEncoder"),
        used=("encoder.", "quant_conv."),
        make_inputs={"sample": _picture},
        renames=rename_vae,
    )


def _picture(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
    import torch

    return torch.rand(spec.shape(size), generator=generator) * 2 - 1


def _construct(config: dict[str, Any]) -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_config(config)
