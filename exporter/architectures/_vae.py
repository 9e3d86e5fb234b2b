"""The autoencoder as two components, decoder and encoder: AutoencoderKL, AutoencoderTiny (TAESD), or
AutoencoderDC (Sana).

The latter two have no distribution: their encoders give the latents themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporter.architectures._parts import adapter, expect_class
from exporter.architectures.base import Component, Size, TensorSpec
from exporter.checkpoints import Checkpoint
from exporter.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import nn

KL, TINY, DEEP = "AutoencoderKL", "AutoencoderTiny", "AutoencoderDC"
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
    # Some configs of an AutoencoderTiny and all of an AutoencoderDC lack the first name.
    blocks = config.get("block_out_channels") or config["decoder_block_out_channels"]
    return int(2 ** (len(blocks) - 1))


def vae_components(
    checkpoint: Checkpoint, native: Size, kinds: tuple[str, ...] = (KL, TINY)
) -> list[Component]:
    """`vae_decoder` and `vae_encoder` of the folder `vae`.

    Args:
        kinds: Classes that the family's pipelines can use.

    Raises:
        CheckpointError: There is none, or it is of another class, or its halves differ in scale.
    """
    kind = expect_class(checkpoint, "vae", kinds)
    if kind != KL:
        _check_halves(checkpoint, kind, checkpoint.config("vae"))
    return [vae_decoder(checkpoint, "vae", native), vae_encoder(checkpoint, "vae", native)]


def vae_decoder(checkpoint: Checkpoint, folder: str, native: Size) -> Component:
    """The decoding half of the autoencoder in `folder`."""
    config = checkpoint.config(folder)
    kind = checkpoint.component_classes[folder][1]
    colours = int(config["in_channels" if kind == DEEP else "out_channels"])
    return Component(
        name="vae_decoder",
        folder=folder,
        checkpoint=checkpoint,
        class_name=kind,
        inputs=(_latents(config, "latent_sample"),),
        outputs=(TensorSpec("sample", "float32", ("batch", colours, "height", "width")),),
        native=native,
        construct=lambda: _construct(kind, config),
        adapt=adapter("VaeDecoder"),
        used=("decoder.", "post_quant_conv.") if kind == KL else ("decoder.",),
        renames=rename_vae,
    )


def vae_encoder(checkpoint: Checkpoint, folder: str, native: Size) -> Component:
    """The encoding half of the autoencoder in `folder`: `latent_parameters` (mean and log-variance), or of
    the others `latent_sample`, the name by which optimum tells the two kinds apart."""
    config = checkpoint.config(folder)
    kind = checkpoint.component_classes[folder][1]
    moments = _latents(config, "latent_parameters", times=2)
    return Component(
        name="vae_encoder",
        folder=folder,
        checkpoint=checkpoint,
        class_name=kind,
        inputs=(TensorSpec("sample", "float32", ("batch", int(config["in_channels"]), "height", "width")),),
        outputs=(moments if kind == KL else _latents(config, "latent_sample"),),
        native=native,
        construct=lambda: _construct(kind, config),
        adapt=adapter({KL: "VaeEncoder", TINY: "TinyVaeEncoder", DEEP: "TinyVaeEncoder"}[kind]),
        used=("encoder.", "quant_conv.") if kind == KL else ("encoder.",),
        make_inputs={"sample": _picture},
        renames=rename_vae,
    )


def _latents(config: dict[str, Any], name: str, times: int = 1) -> TensorSpec:
    channels = times * int(config["latent_channels"])
    return TensorSpec(name, "float32", ("batch", channels, "latent_height", "latent_width"))


def _check_halves(checkpoint: Checkpoint, kind: str, config: dict[str, Any]) -> None:
    """Both halves change the size by the same factor, 2 a block, as pipelines take for granted."""
    blocks = {len(config[f"{half}_block_out_channels"]) for half in ("encoder", "decoder")}
    scale = config.get("upsampling_scaling_factor", 2)
    if len(blocks) != 1 or scale != 2:
        raise CheckpointError(
            f"{checkpoint.source}, component 'vae': an {kind} whose encoder and decoder change the "
            f"size by different factors (blocks: {sorted(blocks)}, upsampling by {scale}) is not converted."
        )


def _picture(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
    import torch

    return torch.rand(spec.shape(size), generator=generator) * 2 - 1


def _construct(kind: str, config: dict[str, Any]) -> nn.Module:
    import diffusers

    # Of a tiny one the library writes this into the config, and warns of it when it reads it back.
    given = {k: v for k, v in config.items() if kind == KL or k != "block_out_channels"}
    made: nn.Module = getattr(diffusers, kind).from_config(given)
    return made
