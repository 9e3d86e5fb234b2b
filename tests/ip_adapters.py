"""Tiny random IP-Adapters, made of diffusers' own modules and named as their authors name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

WEIGHTS = "ip-adapter_tiny.safetensors"
PIXELS, HIDDEN, PROJECTED = 32, 20, 28
"""Of the encoder: 5 tokens, all widths different."""
ADAPTED = {
    "ip_adapter": ("sd1", "plain"),
    "ip_adapter_plus": ("sd1", "plus"),
    "sdxl_ip_adapter": ("sdxl", "plus"),
}
"""Rows of the matrix that are an adapter over a family: the family below, and the kind."""


def encoder(hidden: int = HIDDEN, projected: int = PROJECTED) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=hidden, intermediate_size=40, projection_dim=projected, num_hidden_layers=3,
        num_attention_heads=4, image_size=PIXELS, patch_size=16,
    )  # fmt: skip
    return CLIPVisionModelWithProjection(config)


def write(unet: Path, folder: Path, kind: str = "plain", *, seed: int = 5) -> Path:
    """An adapter for the UNet in a folder, with its encoder beside it.

    Returns:
        The folder, which holds `WEIGHTS` and `image_encoder`.
    """
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    encoder().save_pretrained(folder / "image_encoder")
    made = UNet2DConditionModel.from_pretrained(unet)
    state = {f"image_proj.{name}": value for name, value in projection(kind, made.config.cross_attention_dim)}
    names = [name for name in made.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(names):
        attention = made.get_submodule(name.removesuffix(".processor"))
        for part, like in (("k", attention.to_k), ("v", attention.to_v)):
            # Louder than the text's own, or a tiny picture would hardly show them.
            value = torch.randn(like.weight.shape) * 0.5
            state[f"ip_adapter.{2 * number + 1}.to_{part}_ip.weight"] = value
    save_file({name: value.detach().contiguous().clone() for name, value in state.items()}, folder / WEIGHTS)
    return folder


def projection(kind: str, width: int) -> list[tuple[str, torch.Tensor]]:
    """The weights of diffusers' module of that kind, under the names of the published files."""
    from diffusers.models import embeddings

    if kind == "plain":
        plain = embeddings.ImageProjection(PROJECTED, width, 4)
        return [(n.replace("image_embeds", "proj"), v) for n, v in plain.state_dict().items()]
    if kind == "full":
        full = embeddings.IPAdapterFullImageProjection(HIDDEN, width)
        names = {"ff.net.0.proj": "proj.0", "ff.net.2": "proj.2", "norm": "proj.3"}
        return [
            (n.replace(old, new), v)
            for n, v in full.state_dict().items()
            for old, new in names.items()
            if n.startswith(old)
        ]
    plus = embeddings.IPAdapterPlusImageProjection(
        embed_dims=HIDDEN, output_dims=width, hidden_dims=24, heads=1, num_queries=6
    )
    names = {
        "ln0": "0.norm1", "ln1": "0.norm2", "attn.to_q": "0.to_q", "attn.to_out.0": "0.to_out",
        "ff.0": "1.0", "ff.1.net.0.proj": "1.1", "ff.1.net.2": "1.3",
    }  # fmt: skip
    found, keys = [], {}
    for name, value in plus.state_dict().items():
        if not name.startswith("layers."):
            found.append((name, value))
            continue
        _, layer, inner = name.split(".", 2)
        part, _, parameter = inner.rpartition(".")
        if part in ("attn.to_k", "attn.to_v"):
            keys[layer, part] = value
        else:
            found.append((f"layers.{layer}.{names[part]}.{parameter}", value))
    for layer in {layer for layer, _ in keys}:
        both = torch.cat([keys[layer, "attn.to_k"], keys[layer, "attn.to_v"]])
        found.append((f"layers.{layer}.0.to_kv.weight", both))
    return found
