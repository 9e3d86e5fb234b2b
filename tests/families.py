"""Tiny random checkpoints of every family, in diffusers layout: random weights, real configs in small.

`python -m tests.families NAME FOLDER` writes one.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.checkers import EYES, checker
from tests.parts import BETAS, UNET, XL_UNET, text, tiny_vae, unet, vae
from tests.tiny import make_tokenizer
from tests.transformer_families import (
    cogview3,
    flux,
    flux_fill,
    flux_schnell,
    hunyuan_dit,
    hunyuan_dit_11,
    ltx,
    ltx_095,
    ltx_image,
    pixart_alpha,
    pixart_sigma,
    sana,
    sd3,
    sd35,
)


def make(family: str, folder: Path, *, seed: int = 0) -> Path:
    """Write the tiny checkpoint of a family of `FAMILIES` or `VIDEO` into `folder`; pictures' native size is
    64×64 pixels."""
    torch.manual_seed(seed)
    building = folder.with_name(f"{folder.name}-tokenizer")
    pipeline = {**FAMILIES, **VIDEO, **VIDEO_FROM_PICTURE}[family](make_tokenizer(building))
    pipeline.save_pretrained(folder, safe_serialization=True)
    shutil.rmtree(building)
    return folder


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


def checked(tokenizer: Any) -> Any:
    """Stable Diffusion 1.x with a safety checker, which finds nothing."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPImageProcessor

    scheduler = DDIMScheduler(**BETAS, steps_offset=1, set_alpha_to_one=False, clip_sample=False)
    parts = _sd("StableDiffusionPipeline", tokenizer, scheduler, text(tokenizer)).components
    parts |= {"safety_checker": checker(), "feature_extractor": CLIPImageProcessor(**EYES)}
    return StableDiffusionPipeline(**{n: part for n, part in parts.items() if n != "image_encoder"})


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


FAMILIES: dict[str, Callable[[Any], Any]] = {
    each.__name__: each
    for each in (
        sd2,
        inpaint,
        lcm,
        turbo,
        taesd,
        checked,
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
        hunyuan_dit,
        hunyuan_dit_11,
        cogview3,
    )
}
VIDEO: dict[str, Callable[[Any], Any]] = {each.__name__: each for each in (ltx, ltx_095)}
"""Families that make clips; their autoencoders have a factor of 32, and of 8 in time."""
VIDEO_FROM_PICTURE: dict[str, Callable[[Any], Any]] = {"ltx_image": ltx_image}
"""Those whose clips begin with a picture: no client but ours opens them."""


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))
