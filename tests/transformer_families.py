"""Tiny random checkpoints of the families around a transformer; `tests.families` lists all families."""

from __future__ import annotations

from typing import Any

import torch

from tests.parts import text, vae, vae16
from tests.tiny import (
    make_bert,
    make_bert_tokenizer,
    make_gemma,
    make_gemma_tokenizer,
    make_t5,
    make_t5_tokenizer,
)


def _sd3(tokenizer: Any, encoder_3: Any, tokenizer_3: Any, **config: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        **(
            {
                "sample_size": 8,
                "patch_size": 2,
                "in_channels": 16,
                "out_channels": 16,
                "num_layers": 2,
                "attention_head_dim": 8,
                "num_attention_heads": 4,
                "caption_projection_dim": 32,
                "joint_attention_dim": 64,
                "pooled_projection_dim": 48,
                "pos_embed_max_size": 48,
            }
            | config
        )
    )
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae16(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=text(tokenizer, hidden=16, projected=True),
        text_encoder_2=text(tokenizer, hidden=32, layers=3, act="gelu", projected=True),
        text_encoder_3=encoder_3,
        tokenizer=tokenizer, tokenizer_2=tokenizer, tokenizer_3=tokenizer_3,
    )  # fmt: skip


def sd3(tokenizer: Any) -> Any:
    """Stable Diffusion 3: three text encoders, T5 among them."""
    tokenizer_3 = make_t5_tokenizer()
    return _sd3(tokenizer, make_t5(tokenizer_3, hidden=64), tokenizer_3)


def sd35(tokenizer: Any) -> Any:
    """Stable Diffusion 3.5 medium without T5: a second attention in some layers, normalised queries."""
    return _sd3(tokenizer, None, None, num_layers=3, dual_attention_layers=(0, 1), qk_norm="rms_norm")


def _flux(class_name: str, tokenizer: Any, **config: Any) -> Any:
    import diffusers

    tokenizer_2 = make_t5_tokenizer()
    transformer = diffusers.FluxTransformer2DModel(
        **(
            {
                "in_channels": 64,
                "num_layers": 1,
                "num_single_layers": 2,
                "attention_head_dim": 16,
                "num_attention_heads": 2,
                "joint_attention_dim": 32,
                "pooled_projection_dim": 32,
                "axes_dims_rope": (4, 6, 6),
            }
            | config
        )
    )
    return getattr(diffusers, class_name)(
        transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae16(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=text(tokenizer), tokenizer=tokenizer,
        text_encoder_2=make_t5(tokenizer_2), tokenizer_2=tokenizer_2,
    )  # fmt: skip


def flux(tokenizer: Any) -> Any:
    """FLUX.1 dev: the guidance scale enters as an embedding."""
    return _flux("FluxPipeline", tokenizer, guidance_embeds=True)


def flux_schnell(tokenizer: Any) -> Any:
    """FLUX.1 schnell: no guidance at all."""
    return _flux("FluxPipeline", tokenizer)


def flux_fill(tokenizer: Any) -> Any:
    """FLUX.1 Fill: noise, masked picture and mask side by side in every token."""
    return _flux("FluxFillPipeline", tokenizer, in_channels=384, out_channels=64, guidance_embeds=True)


def _pixart(class_name: str, autoencoder: Any, **config: Any) -> Any:
    import diffusers

    tokenizer = make_t5_tokenizer()
    transformer = diffusers.PixArtTransformer2DModel(
        **(
            {
                "sample_size": 8,
                "num_layers": 2,
                "num_attention_heads": 3,
                "attention_head_dim": 12,
                "cross_attention_dim": 36,
                "caption_channels": 32,
                "interpolation_scale": 2,
                "use_additional_conditions": False,
            }
            | config
        )
    )
    return getattr(diffusers, class_name)(
        transformer=transformer.eval(),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            beta_start=0.0001, beta_end=0.02, beta_schedule="linear", solver_order=2
        ),
        vae=autoencoder,
        text_encoder=make_t5(tokenizer), tokenizer=tokenizer,
    )  # fmt: skip


def pixart_sigma(tokenizer: Any) -> Any:
    """PixArt-Σ: positions between those of the trained size, a variance beside the noise."""
    return _pixart("PixArtSigmaPipeline", vae(scaling_factor=0.13025))


def pixart_alpha(tokenizer: Any) -> Any:
    """PixArt-α at 1024 pixels: the picture's size and aspect ratio enter too, which the pipeline gives at
    128 latent cells a side and at no other number. Here one of them is a pixel, and 16×16 make a patch."""
    autoencoder = vae(
        sample_size=128, block_out_channels=(16,), down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",), mid_block_add_attention=False,
    )  # fmt: skip
    sized: dict[str, Any] = {"sample_size": 128, "patch_size": 16, "use_additional_conditions": None}
    return _pixart("PixArtAlphaPipeline", autoencoder, **sized)


def sana(tokenizer: Any) -> Any:
    """Sana: Gemma 2 with fewer key heads than query heads, linear attention, 32 pixels a latent cell."""
    import diffusers

    gemma = make_gemma_tokenizer()
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=8,
        out_channels=8,
        num_layers=2,
        num_attention_heads=4,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=24,
        sample_size=4,
    )
    autoencoder = diffusers.AutoencoderDC(
        latent_channels=8,
        attention_head_dim=8,
        encoder_block_types=(*("ResBlock",) * 3, *("EfficientViTBlock",) * 3),
        decoder_block_types=(*("ResBlock",) * 3, *("EfficientViTBlock",) * 3),
        encoder_block_out_channels=(8, 8, 8, 16, 16, 32),
        decoder_block_out_channels=(8, 8, 8, 16, 16, 32),
        encoder_layers_per_block=(0, 1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1, 1),
        scaling_factor=0.41407,
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
    )
    return diffusers.SanaPipeline(
        transformer=transformer.eval(),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=2
        ),
        vae=autoencoder.eval(),
        text_encoder=make_gemma(gemma), tokenizer=gemma,
    )  # fmt: skip


def hunyuan_dit(tokenizer: Any) -> Any:
    """HunyuanDiT 1.2: BERT beside T5, rotary positions that the pipeline counts, skips between halves."""
    return _hunyuan_dit(use_style_cond_and_image_meta_size=False)


def hunyuan_dit_11(tokenizer: Any) -> Any:
    """HunyuanDiT up to 1.1: the picture's size and a style enter too."""
    return _hunyuan_dit()


def _hunyuan_dit(**config: Any) -> Any:
    import diffusers

    tokenizer, tokenizer_2 = make_bert_tokenizer(), make_t5_tokenizer()
    transformer = diffusers.HunyuanDiT2DModel(
        **(
            {
                "sample_size": 8,
                "patch_size": 2,
                "in_channels": 4,
                "num_layers": 4,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "hidden_size": 32,
                "mlp_ratio": 2.0,
                "cross_attention_dim": 24,
                "cross_attention_dim_t5": 32,
                "pooled_projection_dim": 16,
            }
            | config
        )
    )
    return diffusers.HunyuanDiTPipeline(
        transformer=transformer.eval(),
        scheduler=diffusers.DDPMScheduler(
            beta_start=0.00085, beta_end=0.03, beta_schedule="scaled_linear",
            prediction_type="v_prediction", steps_offset=1, clip_sample=False,
        ),
        vae=vae(scaling_factor=0.13025),
        text_encoder=make_bert(tokenizer, hidden=24), tokenizer=tokenizer,
        text_encoder_2=make_t5(tokenizer_2), tokenizer_2=tokenizer_2,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def cogview3(tokenizer: Any) -> Any:
    """CogView3-Plus: T5's tokens and patches in one row; the size asked for and its crop are embedded."""
    import diffusers

    tokenizer = make_t5_tokenizer()
    transformer = diffusers.CogView3PlusTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        text_embed_dim=32,
        time_embed_dim=32,
        condition_dim=8,
        pos_embed_max_size=128,
        sample_size=8,
    )
    return diffusers.CogView3PlusPipeline(
        transformer=transformer.eval(),
        scheduler=diffusers.CogVideoXDDIMScheduler(
            prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True,
            snr_shift_scale=4.0,
        ),
        vae=vae16(scaling_factor=0.18215),
        text_encoder=make_t5(tokenizer), tokenizer=tokenizer,
    )  # fmt: skip


def _ltx(class_name: str, **config: Any) -> Any:
    import diffusers

    tokenizer = make_t5_tokenizer()
    autoencoder = diffusers.AutoencoderKLLTXVideo(
        **(
            {
                "latent_channels": 8,
                "block_out_channels": (8, 8, 16, 16),
                "decoder_block_out_channels": (8, 8, 16, 16),
                "layers_per_block": (1, 1, 1, 1, 1),
                "decoder_layers_per_block": (1, 1, 1, 1, 1),
            }
            | config
        )
    )
    # What lies among the weights, and pipelines read: not the same for every channel.
    autoencoder.latents_mean.copy_(torch.linspace(-0.5, 0.5, 8))
    autoencoder.latents_std.copy_(torch.linspace(0.5, 1.5, 8))
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=32,
    )
    return getattr(diffusers, class_name)(
        transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1,
            base_image_seq_len=1024, max_image_seq_len=4096,
        ),
        vae=autoencoder.eval(),
        text_encoder=make_t5(tokenizer), tokenizer=tokenizer,
    )  # fmt: skip


def ltx(tokenizer: Any) -> Any:
    """LTX-Video 0.9.0: a causal encoder, a decoder without a timestep."""
    return _ltx("LTXPipeline")


def ltx_image(tokenizer: Any) -> Any:
    """LTX-Video from a picture: a time for every token."""
    return _ltx("LTXImageToVideoPipeline")


def ltx_095(tokenizer: Any) -> Any:
    """LTX-Video from 0.9.5 on: a decoder that removes the last noise, blocks that fold space and time."""
    return _ltx(
        "LTXPipeline",
        block_out_channels=(8, 16, 16, 32, 32),
        down_block_types=("LTXVideo095DownBlock3D",) * 4,
        downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        spatio_temporal_scaling=(True, True, True, True),
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
        decoder_block_out_channels=(8, 16, 32),
        decoder_layers_per_block=(1, 1, 1, 1),
        decoder_spatio_temporal_scaling=(True, True, True),
        decoder_inject_noise=(False, False, False, False),
        upsample_residual=(True, True, True),
        upsample_factor=(2, 2, 2),
        timestep_conditioning=True,
        decoder_causal=False,
    )
