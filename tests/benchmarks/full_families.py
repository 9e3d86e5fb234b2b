"""Whole pipelines of other families at full size: random narrow weights, written without holding them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from exporter.architectures.weightless import no_weights
from tests.benchmarks.full_size import sdxl_unet, write_weights
from tests.tiny import make_t5_tokenizer, make_tokenizer

VAE_BLOCKS: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}


def make_sdxl(folder: Path, *, seed: int = 0) -> Path:
    """Write SDXL base: 3.5 billion weights in two text encoders, UNet and autoencoder, 6.9 GB."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler

    parts = {
        **_clip_pair(projected=False),
        "unet": sdxl_unet,
        "vae": lambda: AutoencoderKL(
            sample_size=1024, latent_channels=4, scaling_factor=0.13025, **VAE_BLOCKS
        ),
    }
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
        timestep_spacing="leading",
    )  # fmt: skip
    return _write("StableDiffusionXLPipeline", folder, parts, scheduler, seed)


def make_sd3(folder: Path, *, seed: int = 0) -> Path:
    """Write SD3 medium with its transformer (2.0 billion weights) and autoencoder at full size.

    Its text encoders have one layer each, and T5 a narrow one: the transformer is what is measured, and
    optimum-cli has to fit beside it. Without T5 diffusers itself opens no such folder.
    """
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    parts: Mapping[str, Callable[[], nn.Module]] = {
        **_clip_pair(projected=True, layers=1),
        "text_encoder_3": _narrow_t5,
        "transformer": lambda: SD3Transformer2DModel(
            sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=24,
            attention_head_dim=64, num_attention_heads=24, caption_projection_dim=1536,
            joint_attention_dim=4096, pooled_projection_dim=2048, pos_embed_max_size=192,
        ),
        "vae": lambda: AutoencoderKL(
            sample_size=1024, latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609,
            use_quant_conv=False, use_post_quant_conv=False, **VAE_BLOCKS,
        ),
    }  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return _write("StableDiffusion3Pipeline", folder, parts, scheduler, seed)


def make_flux(folder: Path, *, seed: int = 0) -> Path:
    """Write FLUX.1 dev with the transformer at full size: 11.9 billion bfloat16 weights, 24 GB.

    Its T5 has one narrow layer instead of 24 wide ones, for only the transformer is measured.
    """
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    parts: Mapping[str, Callable[[], nn.Module]] = {
        "text_encoder": _clip_pair(projected=False)["text_encoder"],
        "text_encoder_2": _narrow_t5,
        "transformer": lambda: FluxTransformer2DModel(
            in_channels=64, num_layers=19, num_single_layers=38, attention_head_dim=128,
            num_attention_heads=24, joint_attention_dim=4096, pooled_projection_dim=768, guidance_embeds=True,
            axes_dims_rope=(16, 56, 56),
        ),
        "vae": lambda: AutoencoderKL(
            sample_size=1024, latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159,
            use_quant_conv=False, use_post_quant_conv=False, **VAE_BLOCKS,
        ),
    }  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return _write("FluxPipeline", folder, parts, scheduler, seed, dtype="BF16")


def _narrow_t5() -> nn.Module:
    """T5 with the width of its results and one narrow layer instead of 24 wide ones."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=32128, d_model=4096, d_kv=64, d_ff=64, num_layers=1, num_heads=1)
    )


def _clip_pair(*, projected: bool, layers: int | None = None) -> dict[str, Callable[[], nn.Module]]:
    """CLIP ViT-L and OpenCLIP ViT-bigG, as SDXL and SD3 have them; SD3's first one projects too.

    `layers` stands for the 12 and 32 they have.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    ends = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407}
    large = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=layers or 12, num_attention_heads=12,
        hidden_act="quick_gelu", projection_dim=768, **ends,
    )  # fmt: skip
    big = CLIPTextConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=layers or 32, num_attention_heads=20,
        hidden_act="gelu", projection_dim=1280, **ends,
    )  # fmt: skip
    first = CLIPTextModelWithProjection if projected else CLIPTextModel
    return {
        "text_encoder": lambda: first(large),
        "text_encoder_2": lambda: CLIPTextModelWithProjection(big),
    }


def _write(
    pipeline: str,
    folder: Path,
    parts: Mapping[str, Callable[[], nn.Module]],
    scheduler: Any,
    seed: int,
    dtype: str = "F16",
) -> Path:
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": "0.39.0"}
    generator = np.random.default_rng(seed)
    for name, construct in parts.items():
        with no_weights():
            module: Any = construct()
        library = "transformers" if name.startswith("text_encoder") else "diffusers"
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        if library == "transformers":
            module.config.architectures = [type(module).__name__]
            module.config.save_pretrained(place)
            tokenizer = name.replace("text_encoder", "tokenizer")
            t5 = module.config.model_type == "t5"
            words: Any = make_t5_tokenizer() if t5 else make_tokenizer(folder / tokenizer)
            words.save_pretrained(folder / tokenizer)
            index[tokenizer] = ["transformers", "T5TokenizerFast" if t5 else "CLIPTokenizer"]
        else:
            module.save_config(place)
        stem = "model" if library == "transformers" else "diffusion_pytorch_model"
        write_weights(module, place / f"{stem}.safetensors", generator, dtype=dtype)
        index[name] = [library, type(module).__name__]
    scheduler.save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder
