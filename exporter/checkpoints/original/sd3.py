"""The transformer of Stable Diffusion 3 and 3.5 in Stability's layout (`joint_blocks.0.x_block.attn.qkv…`).

The last block gives nothing back to the text, so its context half has no projection and no feed-forward, and
modulates as an output does: (shift, scale).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

from exporter.checkpoints.original.tables import Table, count, joined, linear, one, shape_of
from exporter.checkpoints.safetensors_file import StoredTensor
from exporter.errors import CheckpointError

Tensors = Mapping[str, StoredTensor]
WHAT = "transformer"
BLOCKS = "joint_blocks"
HEAD = 64
"""Channels of an attention head, as published; a shape shows it only where queries are normalised."""
LATENT_SIZE = 128
"""Cells of the training size, 1024 pixels."""

EMBEDDERS = {
    "t_embedder": "time_text_embed.timestep_embedder",
    "y_embedder": "time_text_embed.text_embedder",
}
HALVES = {
    "x_block": ("attn.to_out.0", "norm1.linear", "ff", ("to_q", "to_k", "to_v"), ("norm_q", "norm_k")),
    "context_block": (
        "attn.to_add_out", "norm1_context.linear", "ff_context", ("add_q_proj", "add_k_proj", "add_v_proj"),
        ("norm_added_q", "norm_added_k"),
    ),
}  # fmt: skip


def infer(tensors: Tensors) -> dict[str, Any]:
    """What the shapes show of diffusers' config of an `SD3Transformer2DModel`.

    Args:
        tensors: Without prefix.

    Raises:
        CheckpointError: A tensor that shows a size is missing or odd.
    """
    width, channels, patch, across = shape_of(tensors, "x_embedder.proj.weight", 4, WHAT)
    context, text = shape_of(tensors, "context_embedder.weight", 2, WHAT)
    places = shape_of(tensors, "pos_embed", 3, WHAT)[1]
    out = shape_of(tensors, "final_layer.linear.weight", 2, WHAT)[0]
    blocks = count(tensors, BLOCKS, WHAT)
    norm = f"{BLOCKS}.0.x_block.attn.ln_q.weight"
    head = shape_of(tensors, norm, 1, WHAT)[0] if norm in tensors else None
    if patch != across or context != width or isqrt(places) ** 2 != places or out % patch**2:
        raise CheckpointError(
            f"The file's {WHAT} cannot be recognised: its patches, places and widths do not go together."
        )
    if head is not None and width % head:
        raise CheckpointError(f"The file's {WHAT} has heads of {head} channels, which do not divide {width}.")
    shown: dict[str, Any] = {
        "in_channels": channels,
        "out_channels": out // patch**2,
        "patch_size": patch,
        "num_layers": blocks,
        "caption_projection_dim": width,
        "joint_attention_dim": text,
        "pooled_projection_dim": shape_of(tensors, "y_embedder.mlp.0.weight", 2, WHAT)[1],
        "pos_embed_max_size": isqrt(places),
        "dual_attention_layers": [
            n for n in range(blocks) if f"{BLOCKS}.{n}.x_block.attn2.qkv.weight" in tensors
        ],
        "qk_norm": None if head is None else "rms_norm",
    }
    return shown if head is None else shown | _heads(width, head)


def assume(shown: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """What no shape shows, as published, and that in words."""
    found: dict[str, Any] = {"sample_size": LATENT_SIZE}
    words = f"a training size of {LATENT_SIZE * 8} pixels"
    if "attention_head_dim" not in shown:
        width = int(shown["caption_projection_dim"])
        if width % HEAD:
            raise CheckpointError(
                f"The file's transformer is {width} channels wide, no multiple of the {HEAD} of a head, and "
                "it does not say how many heads it has.",
                hint="Name a folder with transformer/config.json: --config DIR, or --base SOURCE.",
            )
        found |= _heads(width, HEAD)
        words = f"{HEAD} channels an attention head and {words}"
    return found, words


def _heads(width: int, head: int) -> dict[str, Any]:
    return {"attention_head_dim": head, "num_attention_heads": width // head}


def table(shown: Mapping[str, Any]) -> Table:
    """Every tensor of a model of these sizes (`infer`)."""
    blocks, dual = int(shown["num_layers"]), set(shown["dual_attention_layers"])
    normed = shown["qk_norm"] is not None
    return joined(
        [
            one("pos_embed", "pos_embed.pos_embed"),
            linear("x_embedder.proj", "pos_embed.proj"),
            linear("context_embedder", "context_embedder"),
            *(
                linear(f"{name}.mlp.{old}", f"{to}.linear_{new}")
                for name, to in EMBEDDERS.items()
                for old, new in ((0, 1), (2, 2))
            ),
            *(_block(n, last=n == blocks - 1, dual=n in dual, normed=normed) for n in range(blocks)),
            linear("final_layer.adaLN_modulation.1", "norm_out.linear", swap=True),
            linear("final_layer.linear", "proj_out"),
        ]
    )


def _block(number: int, *, last: bool, dual: bool, normed: bool) -> Table:
    new = f"transformer_blocks.{number}"
    parts: list[Table] = []
    for half, (out, modulation, feed, qkv, norms) in HALVES.items():
        old, ends = f"{BLOCKS}.{number}.{half}", last and half == "context_block"
        parts.append(linear(f"{old}.attn.qkv", *(f"{new}.attn.{part}" for part in qkv)))
        parts.append(linear(f"{old}.adaLN_modulation.1", f"{new}.{modulation}", swap=ends))
        if normed:
            parts += _norms(f"{old}.attn", f"{new}.attn", norms)
        if not ends:
            parts.append(linear(f"{old}.attn.proj", f"{new}.{out}"))
            parts.append(linear(f"{old}.mlp.fc1", f"{new}.{feed}.net.0.proj"))
            parts.append(linear(f"{old}.mlp.fc2", f"{new}.{feed}.net.2"))
    if dual:
        old, to = f"{BLOCKS}.{number}.x_block.attn2", f"{new}.attn2"
        parts.append(linear(f"{old}.qkv", f"{to}.to_q", f"{to}.to_k", f"{to}.to_v"))
        parts.append(linear(f"{old}.proj", f"{to}.to_out.0"))
        if normed:
            parts += _norms(old, to, ("norm_q", "norm_k"))
    return joined(parts)


def _norms(old: str, new: str, names: tuple[str, str]) -> list[Table]:
    pairs = zip(("ln_q", "ln_k"), names, strict=True)
    return [one(f"{old}.{norm}.weight", f"{new}.{name}.weight") for norm, name in pairs]
