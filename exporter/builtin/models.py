"""The components of the checkpoint: Stable Diffusion 1's shape with its numbers made small."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from exporter.builtin import tokenizer as tokenizer_files
from exporter.builtin.prompts import words

SIZE = 128  # pixels
FACTOR = 8  # pixels per latent
SCALING = 0.18215
TEXT_WIDTH = 128


def make_vae() -> AutoencoderKL:
    """Four blocks (factor 8) and four latent channels, as Stable Diffusion 1's."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(24, 48, 96, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        scaling_factor=SCALING,
    )


def make_unet() -> UNet2DConditionModel:
    """Stable Diffusion 1's four levels, three of them with cross-attention, eight heads."""
    return UNet2DConditionModel(
        sample_size=SIZE // FACTOR,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(64, 96, 96, 64),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
        norm_num_groups=32,
    )


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write the tokenizer's files to `folder` and load them."""
    tokenizer_files.write(folder, words())
    return CLIPTokenizer.from_pretrained(folder)


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two CLIP layers over 77 tokens; the last hidden state conditions the UNet."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=8,
            max_position_embeddings=tokenizer_files.MAX_LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion 1's noise schedule and DDIM settings."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


@torch.no_grad()
def fold_latent_scale(vae: AutoencoderKL, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Make `SCALING * latents` zero-mean and unit-variance without changing a single picture.

    `mean` and `std` (float32 [4]) are those of the unscaled latents, per channel. The change of
    scale goes into the two 1x1 convolutions around the latents: `quant_conv` gets it (rows of the
    mean times c, bias of the log-variance plus 2 ln c) and `post_quant_conv` its inverse.
    """
    quant, post = vae.quant_conv, vae.post_quant_conv
    assert quant is not None and quant.bias is not None
    assert post is not None and post.bias is not None
    factor = 1.0 / (SCALING * std)
    channels = len(factor)
    quant.weight[:channels] *= factor[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) * factor
    quant.bias[channels:] += 2.0 * factor.log()
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(dim=1)
    post.weight /= factor[None, :, None, None]


def parameter_count(module: nn.Module) -> int:
    """Number of parameters of a component."""
    return sum(parameter.numel() for parameter in module.parameters())


def save_pipeline(
    folder: Path,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> None:
    """Write the diffusers folder, weights in float16; the modules passed are left in float16."""
    modules: tuple[nn.Module, ...] = (vae, unet, text_encoder)
    for module in modules:
        module.to("cpu", torch.float16)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=make_scheduler(),  # type: ignore[arg-type]  # diffusers' hints forbid
        safety_checker=None,  # type: ignore[arg-type]  # what its code
        feature_extractor=None,  # type: ignore[arg-type]  # allows
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    tokenizer_files.write(folder / "tokenizer", words())  # the plain four files, no more
    for weights in folder.glob("*/*.safetensors"):
        weights.chmod(0o644)
    for config_path in folder.glob("*/config.json"):
        # Only the storage is float16: loaders that follow the config compute in float32,
        # and no config may hold the path of the machine it was trained on.
        config = json.loads(config_path.read_text())
        config.pop("_name_or_path", None)
        for key in ("dtype", "torch_dtype"):
            if key in config:
                config[key] = "float32"
        config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
