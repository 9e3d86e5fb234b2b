"""Tiny random checkpoints of pipelines that no module is written for: the generic route converts them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tests.parts import BETAS, UNET, text, unet, vae
from tests.tiny import make_t5_tokenizer, make_tokenizer

WIDE = {"cross_attention_dim": 32}


def make(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Write the tiny checkpoint of a pipeline of `UNWRITTEN` into `folder`."""
    torch.manual_seed(seed)
    UNWRITTEN[name]().save_pretrained(folder, safe_serialization=True)
    return folder


def ddpm() -> Any:
    """Unconditional: a UNet on pixels and a scheduler, nothing else."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
    )
    return DDPMPipeline(unet=unet, scheduler=DDPMScheduler())


def dit() -> Any:
    """Conditioned on classes: a transformer, an autoencoder, labels."""
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=8, num_layers=2,
        num_attention_heads=2, attention_head_dim=8, num_embeds_ada_norm=1000, norm_num_groups=8,
    )  # fmt: skip
    return DiTPipeline(transformer=transformer.eval(), vae=vae(), scheduler=DDIMScheduler())


def aura_flow() -> Any:
    """Prompts: a T5 of many languages, a transformer with a table of positions, flow matching."""
    import diffusers
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer = make_t5_tokenizer()
    encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    ).eval()  # fmt: skip
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
        attention_head_dim=8, num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=32,
        out_channels=4, pos_embed_max_size=1024,
    )  # fmt: skip
    return diffusers.AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=vae(),
        transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def instruct_pix2pix() -> Any:
    """Prompts and a picture to change: its latents are further channels of the UNet, three rows a picture."""
    import diffusers

    return diffusers.StableDiffusionInstructPix2PixPipeline(
        **_clip(), vae=vae(), unet=unet(**UNET | WIDE, in_channels=8),
        scheduler=diffusers.EulerDiscreteScheduler(**BETAS),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def upscaler() -> Any:
    """Prompts and a small picture: its noisy pixels are further channels, the noise's level is a class."""
    import diffusers

    three = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (16, 32, 32),
    }
    return diffusers.StableDiffusionUpscalePipeline(
        **_clip(), vae=vae(**three, scaling_factor=0.08333),
        unet=unet(**UNET | WIDE, in_channels=7, num_class_embeds=1000),
        low_res_scheduler=diffusers.DDPMScheduler(), scheduler=diffusers.DDIMScheduler(**BETAS),
        max_noise_level=350,
    )  # fmt: skip


def marigold() -> Any:
    """A picture and no prompt: depths of what it shows."""
    import diffusers

    return diffusers.MarigoldDepthPipeline(
        **_clip(), vae=vae(), unet=unet(**UNET | WIDE, in_channels=8),
        scheduler=diffusers.DDIMScheduler(**BETAS),
        prediction_type="depth", scale_invariant=True, shift_invariant=True, default_denoising_steps=2,
        default_processing_resolution=64,
    )  # fmt: skip


def _clip() -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        tokenizer = make_tokenizer(Path(folder))
    return {"text_encoder": text(tokenizer), "tokenizer": tokenizer}


FROM_PICTURES: dict[str, Callable[[], Any]] = {
    each.__name__: each for each in (instruct_pix2pix, upscaler, marigold)
}
UNWRITTEN: dict[str, Callable[[], Any]] = {
    each.__name__: each for each in (ddpm, dit, aura_flow)
} | FROM_PICTURES
