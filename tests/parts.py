"""Tiny random parts of which the families' checkpoints are made."""

from __future__ import annotations

from typing import Any

import torch

UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "norm_num_groups": 8,
    "attention_head_dim": 4,
}
XL_UNET = UNET | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def text(
    tokenizer: Any, *, hidden: int = 32, layers: int = 2, act: str = "quick_gelu", projected: bool = False
) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        hidden_act=act,
        projection_dim=24,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def vae(**more: Any) -> Any:
    from diffusers import AutoencoderKL

    config = {
        "sample_size": 64,
        "block_out_channels": (16, 16, 32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 8,
    }
    return AutoencoderKL(**(config | more))


def vae16(**more: Any) -> Any:
    """As of the flow-matching models: 16 channels, a shift beside the scale, no 1×1 convolutions around."""
    config = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
    return vae(**(config | more))


def tiny_vae(**more: Any) -> Any:
    """As TAESD, with fewer channels and blocks; grey on average, for [0, 1] is cut off at both ends."""
    from diffusers import AutoencoderTiny

    widths, blocks = (
        (16, 16, 16, 16),
        {"num_encoder_blocks": (1, 1, 1, 1), "num_decoder_blocks": (1, 1, 1, 1)},
    )
    made = AutoencoderTiny(
        encoder_block_out_channels=widths, decoder_block_out_channels=widths, **(blocks | more)
    )
    with torch.no_grad():
        made.decoder.layers[-1].bias.fill_(0.5)
        made.decoder.layers[-1].weight.mul_(20)
    return made


def unet(**config: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**config)
