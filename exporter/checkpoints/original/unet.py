"""The UNet of Stable Diffusion 1, 2 and XL in CompVis / Stability layout (`model.diffusion_model.…`).

The original numbers its blocks through (`input_blocks.4.1`), diffusers by level and layer
(`down_blocks.1.attentions.0`). Which number is which follows from the layers per level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from exporter.checkpoints.safetensors_file import StoredTensor
from exporter.errors import CheckpointError

Tensors = Mapping[str, StoredTensor]

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
TOP = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def infer(tensors: Tensors, *, heads: int | None, sample_size: int) -> dict[str, Any]:
    """diffusers' config of a `UNet2DConditionModel`, from the shapes.

    Args:
        tensors: Without their prefix (`input_blocks.0.0.weight` …).
        heads: Attention heads of every level; None means 64 channels a head (Stable Diffusion 2, XL).
        sample_size: Latent cells of the training size; not visible in the shapes.

    Raises:
        CheckpointError: The blocks are arranged as in no model of this kind.
    """
    levels = _levels(tensors)
    widths = [level["width"] for level in levels]
    counts = {level["layers"] for level in levels}
    if len(counts) != 1:
        raise _odd("its levels differ in their number of layers")
    crossed = [level["depth"] > 0 for level in levels]
    if not any(crossed):
        raise _odd("no level attends to the text")
    first = next(name for name in tensors if name.endswith("attn2.to_k.weight"))
    depths = [max(level["depth"], 1) for level in levels]
    middle = _depth(tensors, "middle_block.1")
    if middle != depths[-1] and not (middle and not crossed[-1]):
        raise _odd("its middle block has another depth than its last level")
    if not crossed[-1] and middle:
        depths[-1] = middle  # diffusers gives the middle block the last level's, which here has none itself
    linear = len(_shape(tensors, next(n for n in tensors if n.endswith(".proj_in.weight")))) == 2
    config: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": heads if heads is not None else [max(width // 64, 1) for width in widths],
        "block_out_channels": widths,
        "cross_attention_dim": _shape(tensors, first)[1],
        "down_block_types": ["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in crossed],
        "up_block_types": ["CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(crossed)],
        "in_channels": _shape(tensors, "input_blocks.0.0.weight")[1],
        "out_channels": _shape(tensors, "out.2.weight")[0],
        "layers_per_block": counts.pop(),
        "norm_num_groups": math.gcd(32, *widths),
        "sample_size": sample_size,
        "use_linear_projection": linear,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }
    if any(depth != 1 for depth in depths):
        config["transformer_layers_per_block"] = depths
    if "label_emb.0.0.weight" in tensors:
        # The last 256 x 6 of the projection's inputs embed the six numbers of size and crop.
        config["addition_embed_type"] = "text_time"
        config["addition_time_embed_dim"] = 256
        config["projection_class_embeddings_input_dim"] = _shape(tensors, "label_emb.0.0.weight")[1]
    return config


def _levels(tensors: Tensors) -> list[dict[str, int]]:
    numbers = {int(n.split(".")[1]) for n in tensors if n.startswith("input_blocks.")}
    if numbers != set(range(len(numbers))):
        raise _odd("some of its input blocks are missing")
    levels: list[dict[str, int]] = [{"layers": 0, "width": 0, "depth": 0}]
    for number in range(1, len(numbers)):
        block = f"input_blocks.{number}"
        if f"{block}.0.op.weight" in tensors:
            levels.append({"layers": 0, "width": 0, "depth": 0})
            continue
        width = _shape(tensors, f"{block}.0.in_layers.2.weight")[0]
        depth = _depth(tensors, f"{block}.1")
        level = levels[-1]
        if level["layers"] and (level["width"], level["depth"]) != (width, depth):
            raise _odd("the layers of one level differ")
        level.update(layers=level["layers"] + 1, width=width, depth=depth)
    if not all(level["layers"] for level in levels):
        raise _odd("a level has no layers")
    return levels


def _depth(tensors: Tensors, attention: str) -> int:
    prefix = f"{attention}.transformer_blocks."
    return len({name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)})


def _shape(tensors: Tensors, name: str) -> tuple[int, ...]:
    if name not in tensors or len(tensors[name].shape) < 2:
        raise _odd(f"it has no {name!r}")
    return tensors[name].shape


def _odd(why: str) -> CheckpointError:
    return CheckpointError(
        f"The file's UNet cannot be recognised: {why}.",
        hint="If diffusers reads it, save it with `save_pretrained(...)` and convert that folder.",
    )


def modules(config: Mapping[str, Any]) -> dict[str, str]:
    """Module of the original → module of diffusers, for a config with these block types and layers."""
    found = dict(TOP)
    layers = int(config["layers_per_block"])
    number = 1
    down = list(config["down_block_types"])
    for level, kind in enumerate(down):
        for layer in range(layers):
            found[f"input_blocks.{number}.0"] = f"down_blocks.{level}.resnets.{layer}"
            if kind.startswith("CrossAttn"):
                found[f"input_blocks.{number}.1"] = f"down_blocks.{level}.attentions.{layer}"
            number += 1
        if level < len(down) - 1:
            found[f"input_blocks.{number}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
            number += 1
    found["middle_block.0"] = "mid_block.resnets.0"
    found["middle_block.1"] = "mid_block.attentions.0"
    found["middle_block.2"] = "mid_block.resnets.1"
    number = 0
    up = list(config["up_block_types"])
    for level, kind in enumerate(up):
        attends = kind.startswith("CrossAttn")
        for layer in range(layers + 1):
            found[f"output_blocks.{number}.0"] = f"up_blocks.{level}.resnets.{layer}"
            if attends:
                found[f"output_blocks.{number}.1"] = f"up_blocks.{level}.attentions.{layer}"
            if layer == layers and level < len(up) - 1:
                place = 2 if attends else 1
                found[f"output_blocks.{number}.{place}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
            number += 1
    return found


def weights(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Every tensor by diffusers' name.

    Raises:
        CheckpointError: A tensor that has no place in the model.
    """
    table = modules(config)
    return {rename(name, table): tensor for name, tensor in tensors.items()}


def rename(name: str, table: Mapping[str, str]) -> str:
    """diffusers' name of one weight; the longest known module that it lies in decides."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = table.get(".".join(parts[:length]))
        if module is None:
            continue
        rest = ".".join(parts[length:])
        if ".resnets." in module:
            inner, _, kind = rest.rpartition(".")
            if inner not in RESNET:
                break
            rest = f"{RESNET[inner]}.{kind}"
        return f"{module}.{rest}"
    raise CheckpointError(f"The file's UNet holds {name!r}, which no model of this kind has.")
