"""Tiny random checkpoints of every family, in diffusers layout: random weights, real configs in small."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.tiny import make_gemma, make_gemma_tokenizer, make_t5, make_t5_tokenizer, make_tokenizer

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


def make(family: str, folder: Path, *, seed: int = 0) -> Path:
    """Write the tiny checkpoint of a family of `FAMILIES` into `folder`; native size 64×64 pixels."""
    torch.manual_seed(seed)
    building = folder.with_name(f"{folder.name}-tokenizer")
    pipeline = FAMILIES[family](make_tokenizer(building))
    pipeline.save_pretrained(folder, safe_serialization=True)
    shutil.rmtree(building)
    return folder


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


def _sd(
    class_name: str,
    tokenizer: Any,
    scheduler: Any,
    text_encoder: Any,
    *,
    autoencoder: Any = None,
    **config: Any,
) -> Any:
    import diffusers

    return getattr(diffusers, class_name)(
        vae=autoencoder or vae(), text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler,
        unet=unet(**(UNET | {"cross_attention_dim": 32} | config)),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sd2(tokenizer: Any) -> Any:
    """Stable Diffusion 2.x: OpenCLIP's activation, heads by level, linear projections, v-prediction."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        **BETAS, prediction_type="v_prediction", steps_offset=1, set_alpha_to_one=False, clip_sample=False
    )
    encoder = text(tokenizer, layers=3, act="gelu")
    config = {"attention_head_dim": [2, 4], "use_linear_projection": True}
    return _sd("StableDiffusionPipeline", tokenizer, scheduler, encoder, **config)


def inpaint(tokenizer: Any) -> Any:
    """Stable Diffusion inpainting: latents, mask and masked picture side by side, nine channels."""
    from diffusers import PNDMScheduler

    scheduler = PNDMScheduler(**BETAS, steps_offset=1, skip_prk_steps=True)
    return _sd("StableDiffusionInpaintPipeline", tokenizer, scheduler, text(tokenizer), in_channels=9)


def lcm(tokenizer: Any) -> Any:
    """A latent consistency model: the guidance scale enters as an embedding."""
    from diffusers import LCMScheduler

    scheduler = LCMScheduler(**BETAS, original_inference_steps=50)
    return _sd("LatentConsistencyModelPipeline", tokenizer, scheduler, text(tokenizer), time_cond_proj_dim=16)


def turbo(tokenizer: Any) -> Any:
    """As SD-Turbo: Euler ancestral over trailing timesteps."""
    from diffusers import EulerAncestralDiscreteScheduler

    scheduler = EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    return _sd("StableDiffusionPipeline", tokenizer, scheduler, text(tokenizer, act="gelu"))


def taesd(tokenizer: Any) -> Any:
    """Stable Diffusion 1.x with a tiny autoencoder in the place of its own."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**BETAS, steps_offset=1, set_alpha_to_one=False, clip_sample=False)
    return _sd("StableDiffusionPipeline", tokenizer, scheduler, text(tokenizer), autoencoder=tiny_vae())


def control(made: Any) -> Any:
    """A ControlNet for a UNet; in a fresh one the last layers are zero, so that nothing could be seen."""
    from diffusers import ControlNetModel

    found = ControlNetModel.from_unet(made, conditioning_embedding_out_channels=(8, 8, 16, 16))
    last = (found.controlnet_cond_embedding.conv_out, found.controlnet_mid_block)
    for layer in (*last, *found.controlnet_down_blocks):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return found


def _controlled(tokenizer: Any, count: int) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionControlNetPipeline

    made = unet(**(UNET | {"cross_attention_dim": 32}))
    controls = [control(made) for _ in range(count)]
    scheduler = DDIMScheduler(**BETAS, steps_offset=1, set_alpha_to_one=False, clip_sample=False)
    return StableDiffusionControlNetPipeline(
        vae=vae(), text_encoder=text(tokenizer), tokenizer=tokenizer, scheduler=scheduler, unet=made,
        controlnet=controls if count > 1 else controls[0],
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def controlnet(tokenizer: Any) -> Any:
    """Stable Diffusion 1.x with a ControlNet."""
    return _controlled(tokenizer, 1)


def two_controlnets(tokenizer: Any) -> Any:
    """The same with two of them."""
    return _controlled(tokenizer, 2)


def _features(kind: str, downscale: int) -> Any:
    from diffusers import T2IAdapter

    return T2IAdapter(
        in_channels=3, channels=[32, 64], num_res_blocks=1, downscale_factor=downscale, adapter_type=kind
    )


def t2i_adapter(tokenizer: Any) -> Any:
    """Stable Diffusion 1.x with a T2I-Adapter."""
    from diffusers import StableDiffusionAdapterPipeline

    parts = _controlled(tokenizer, 1).components
    known = ("vae", "text_encoder", "tokenizer", "unet", "scheduler", "safety_checker", "feature_extractor")
    return StableDiffusionAdapterPipeline(
        **{name: parts[name] for name in known},
        adapter=_features("full_adapter", 8),
        requires_safety_checker=False,
    )


def _euler() -> Any:
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading")


def sdxl(tokenizer: Any) -> Any:
    """Stable Diffusion XL base: two text encoders of different width, six numbers."""
    from diffusers import StableDiffusionXLPipeline

    config = XL_UNET | {"cross_attention_dim": 48, "projection_class_embeddings_input_dim": 24 + 6 * 8}
    return StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025, force_upcast=True),
        text_encoder=text(tokenizer, hidden=16),
        text_encoder_2=text(tokenizer, hidden=32, layers=3, act="gelu", projected=True),
        tokenizer=tokenizer, tokenizer_2=tokenizer, unet=unet(**config), scheduler=_euler(),
    )  # fmt: skip


def sdxl_controlnet(tokenizer: Any) -> Any:
    """SDXL base with a ControlNet, which is told of sizes and crops too."""
    from diffusers import StableDiffusionXLControlNetPipeline

    parts = sdxl(tokenizer).components
    parts = {name: part for name, part in parts.items() if part is not None}
    return StableDiffusionXLControlNetPipeline(**parts, controlnet=control(parts["unet"]))


def sdxl_t2i_adapter(tokenizer: Any) -> Any:
    """SDXL base with a T2I-Adapter of its own kind."""
    from diffusers import StableDiffusionXLAdapterPipeline

    parts = {name: part for name, part in sdxl(tokenizer).components.items() if part is not None}
    return StableDiffusionXLAdapterPipeline(**parts, adapter=_features("full_adapter_xl", 16))


def sdxl_refiner(tokenizer: Any) -> Any:
    """The XL refiner: the second text encoder only, five numbers (an aesthetic score)."""
    from diffusers import StableDiffusionXLImg2ImgPipeline

    config = XL_UNET | {"cross_attention_dim": 32, "projection_class_embeddings_input_dim": 24 + 5 * 8}
    return StableDiffusionXLImg2ImgPipeline(
        vae=vae(scaling_factor=0.13025, force_upcast=True),
        text_encoder=None, tokenizer=None,
        text_encoder_2=text(tokenizer, hidden=32, layers=3, act="gelu", projected=True),
        tokenizer_2=tokenizer, unet=unet(**config), scheduler=_euler(),
        requires_aesthetics_score=True,
    )  # fmt: skip


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


FAMILIES: dict[str, Callable[[Any], Any]] = {
    each.__name__: each
    for each in (
        sd2,
        inpaint,
        lcm,
        turbo,
        taesd,
        sdxl,
        sdxl_refiner,
        sd3,
        sd35,
        flux,
        flux_schnell,
        flux_fill,
        pixart_sigma,
        pixart_alpha,
        sana,
        controlnet,
        two_controlnets,
        sdxl_controlnet,
        t2i_adapter,
        sdxl_t2i_adapter,
    )
}
