"""Full-size checkpoints of random weights, written without holding them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from torch import nn

from exporter.architectures.weightless import no_weights
from tests.tiny import make_tokenizer

BLOCK = 1 << 22


def make_full_size(folder: Path, *, seed: int = 0, hollow: bool = False) -> Path:
    """Write the pipeline: shapes and configs of SD 1.5, weights of plausible scale.

    Norm weights are one, biases zero, everything else normal with deviation 1/√fan-in, so that activations
    stay in range through all layers.

    Args:
        hollow: Weights are holes in the files instead: zeros that take no room on most disks.
    """
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = make_tokenizer(folder / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
        num_attention_heads=12, max_position_embeddings=77, hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        projection_dim=768,
    )  # fmt: skip
    parts: dict[str, tuple[str, str, Callable[[], nn.Module]]] = {
        "text_encoder": ("transformers", "model", lambda: CLIPTextModel(text)),
        "unet": (
            "diffusers",
            "diffusion_pytorch_model",
            lambda: UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        ),
        "vae": (
            "diffusers",
            "diffusion_pytorch_model",
            lambda: AutoencoderKL(
                sample_size=512,
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                latent_channels=4,
            ),
        ),
    }
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.39.0",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    generator = np.random.default_rng(seed)
    for name, (library, stem, construct) in parts.items():
        with no_weights():
            module = construct()
        (folder / name).mkdir(parents=True, exist_ok=True)
        if library == "transformers":
            module.config.architectures = ["CLIPTextModel"]
        module.config.save_pretrained(folder / name) if library == "transformers" else module.save_config(
            folder / name
        )
        path = folder / name / f"{stem}.safetensors"
        if hollow:
            raw, size = _header(module, "F32")
            path.write_bytes(raw)
            os.truncate(path, len(raw) + size)
        else:
            write_weights(module, path, generator)
        index[name] = [library, type(module).__name__]
    tokenizer.save_pretrained(folder / "tokenizer")
    PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, skip_prk_steps=True
    ).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def sdxl_unet() -> nn.Module:
    """The UNet of SDXL base, 2.57 billion parameters."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
        cross_attention_dim=2048,
    )


def write_weights(
    module: nn.Module, path: Path, generator: np.random.Generator, *, dtype: str = "F32"
) -> None:
    """Random weights for every parameter of a module without any, straight into a safetensors file."""
    noise = generator.standard_normal(BLOCK, dtype=np.float32)
    parameters = dict(module.named_parameters())
    raw, _ = _header(module, dtype)
    with path.open("wb") as handle:
        handle.write(raw)
        for number, (name, parameter) in enumerate(parameters.items()):
            for values in _values(name, parameter, noise, number):
                handle.write(_stored(values, dtype).tobytes())


def _header(module: nn.Module, dtype: str) -> tuple[bytes, int]:
    """The beginning of a safetensors file of the module's parameters, and the size of the rest."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, parameter in module.named_parameters():
        size = (4 if dtype == "F32" else 2) * parameter.numel()
        header[name] = {
            "dtype": dtype,
            "shape": list(parameter.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw, offset


def _stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 as safetensors keeps it: bfloat16 is its upper half, here without rounding."""
    if dtype == "BF16":
        return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(np.float16) if dtype == "F16" else values


def _values(name: str, parameter: nn.Parameter, noise: np.ndarray, number: int) -> Iterator[np.ndarray]:
    """Weights of one parameter. No two get the same: exporters that look for duplicates would merge them."""
    left = parameter.numel()
    if parameter.dim() == 1:
        yield np.full(left, 0.0 if name.endswith("bias") else 1.0, np.float32)
        return
    scale = np.float32(
        0.02 if "embedding" in name and "time" not in name else 1 / math.sqrt(left / parameter.shape[0])
    )
    start = 977 * number % (len(noise) // 2)
    while left:
        piece = noise[start : start + min(left, len(noise) - start)] * scale
        left -= len(piece)
        yield piece
