"""The transformer of FLUX.1 in Black Forest Labs' layout (`double_blocks.0.img_attn.qkv.weight` …).

Picture and text run side by side in the double blocks, joined in the single blocks. There `linear1` holds
query, key, value and the first layer of the feed-forward in one matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exporter.checkpoints.original.tables import Table, count, joined, linear, one, shape_of
from exporter.checkpoints.safetensors_file import StoredTensor
from exporter.errors import CheckpointError

Tensors = Mapping[str, StoredTensor]
WHAT = "transformer"
DOUBLE, SINGLE = "double_blocks", "single_blocks"
ROPE = {128: [16, 56, 56]}
"""Channels of a head → those that turn with frame, row and column. No shape shows it; one is published."""

EMBEDDERS = {
    "time_in": "time_text_embed.timestep_embedder",
    "vector_in": "time_text_embed.text_embedder",
    "guidance_in": "time_text_embed.guidance_embedder",
}
STREAMS = {
    "img": {
        "mod.lin": "norm1.linear",
        "attn.proj": "attn.to_out.0",
        "mlp.0": "ff.net.0.proj",
        "mlp.2": "ff.net.2",
    },
    "txt": {
        "mod.lin": "norm1_context.linear",
        "attn.proj": "attn.to_add_out",
        "mlp.0": "ff_context.net.0.proj",
        "mlp.2": "ff_context.net.2",
    },
}
QKV = {"img": ("to_q", "to_k", "to_v"), "txt": ("add_q_proj", "add_k_proj", "add_v_proj")}
NORMS = {"img": ("norm_q", "norm_k"), "txt": ("norm_added_q", "norm_added_k")}


def infer(tensors: Tensors) -> dict[str, Any]:
    """What the shapes show of diffusers' config of a `FluxTransformer2DModel`.

    Args:
        tensors: Without prefix.

    Raises:
        CheckpointError: A tensor that shows a size is missing or odd.
    """
    width, channels = shape_of(tensors, "img_in.weight", 2, WHAT)
    (head,) = shape_of(tensors, f"{DOUBLE}.0.img_attn.norm.query_norm.scale", 1, WHAT)
    if width % head:
        raise CheckpointError(f"The file's {WHAT} has heads of {head} channels, which do not divide {width}.")
    return {
        "in_channels": channels,
        "out_channels": shape_of(tensors, "final_layer.linear.weight", 2, WHAT)[0],
        "patch_size": 1,
        "num_layers": count(tensors, DOUBLE, WHAT),
        "num_single_layers": count(tensors, SINGLE, WHAT),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shape_of(tensors, "txt_in.weight", 2, WHAT)[1],
        "pooled_projection_dim": shape_of(tensors, "vector_in.in_layer.weight", 2, WHAT)[1],
        "guidance_embeds": any(name.startswith("guidance_in.") for name in tensors),
    }


def assume(shown: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """What no shape shows, as published, and that in words.

    Raises:
        CheckpointError: Nothing is published for heads of this size.
    """
    head = int(shown["attention_head_dim"])
    if head not in ROPE:
        raise CheckpointError(
            f"The file's transformer has heads of {head} channels, and it does not say which of them turn "
            "with row and column (axes_dims_rope).",
            hint="Name a folder with transformer/config.json: --config DIR, or --base SOURCE.",
        )
    return {"axes_dims_rope": ROPE[head]}, f"rotary axes {ROPE[head]}"


def table(shown: Mapping[str, Any]) -> Table:
    """Every tensor of a model of these sizes (`infer`)."""
    width = int(shown["num_attention_heads"]) * int(shown["attention_head_dim"])
    embedders = [n for n in EMBEDDERS if n != "guidance_in" or shown["guidance_embeds"]]
    return joined(
        [
            linear("img_in", "x_embedder"),
            linear("txt_in", "context_embedder"),
            *(
                linear(f"{name}.{old}", f"{EMBEDDERS[name]}.{new}")
                for name in embedders
                for old, new in (("in_layer", "linear_1"), ("out_layer", "linear_2"))
            ),
            *(_double(number) for number in range(int(shown["num_layers"]))),
            *(_single(number, width) for number in range(int(shown["num_single_layers"]))),
            linear("final_layer.adaLN_modulation.1", "norm_out.linear", swap=True),
            linear("final_layer.linear", "proj_out"),
        ]
    )


def _double(number: int) -> Table:
    old, new = f"{DOUBLE}.{number}", f"transformer_blocks.{number}"
    parts: list[Table] = []
    for stream, layers in STREAMS.items():
        parts += [linear(f"{old}.{stream}_{a}", f"{new}.{b}") for a, b in layers.items()]
        parts.append(linear(f"{old}.{stream}_attn.qkv", *(f"{new}.attn.{part}" for part in QKV[stream])))
        parts += _norms(f"{old}.{stream}_attn.norm", f"{new}.attn", NORMS[stream])
    return joined(parts)


def _single(number: int, width: int) -> Table:
    old, new = f"{SINGLE}.{number}", f"single_transformer_blocks.{number}"
    first = (*(f"{new}.attn.{part}" for part in QKV["img"]), f"{new}.proj_mlp")
    return joined(
        [
            linear(f"{old}.modulation.lin", f"{new}.norm.linear"),
            linear(f"{old}.linear1", *first, rows=(width, width, width, 4 * width)),
            linear(f"{old}.linear2", f"{new}.proj_out"),
            *_norms(f"{old}.norm", f"{new}.attn", NORMS["img"]),
        ]
    )


def _norms(old: str, new: str, names: tuple[str, str]) -> list[Table]:
    pairs = zip(("query_norm", "key_norm"), names, strict=True)
    return [one(f"{old}.{norm}.scale", f"{new}.{name}.weight") for norm, name in pairs]
