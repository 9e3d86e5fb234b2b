"""The autoencoder in CompVis layout (`first_stage_model.…`), alone or inside a checkpoint.

Its attention is made of 1x1 convolutions; diffusers has linear layers there, the same numbers without
the two last dimensions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from exporter.checkpoints.derived import reshaped
from exporter.checkpoints.safetensors_file import StoredTensor
from exporter.errors import CheckpointError

Tensors = Mapping[str, StoredTensor]

ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
DOWN = re.compile(r"^down\.(\d+)\.(block\.(\d+)|downsample)\.(.+)$")
UP = re.compile(r"^up\.(\d+)\.(block\.(\d+)|upsample)\.(.+)$")
MID = re.compile(r"^mid\.(block_(\d+)|attn_1)\.(.+)$")


def is_original(tensors: Tensors) -> bool:
    """Whether these are an autoencoder's tensors under the original names, without prefix."""
    return "decoder.conv_in.weight" in tensors and "decoder.mid.block_1.conv1.weight" in tensors


def infer(tensors: Tensors, *, sample_size: int, scaling: Mapping[str, Any]) -> dict[str, Any]:
    """diffusers' config of an `AutoencoderKL`, from the shapes.

    Args:
        tensors: Without their prefix (`encoder.conv_in.weight` …).
        sample_size: Pixels of the training size.
        scaling: `scaling_factor` and `shift_factor`, which no shape shows.

    Raises:
        CheckpointError: The blocks are arranged as in no autoencoder of this kind.
    """
    try:
        count = 1 + max(int(m[1]) for n in tensors if (m := re.match(r"encoder\.down\.(\d+)\.", n)))
        widths = [tensors[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(count)]
        layers = {
            len({m[1] for n in tensors if (m := re.match(rf"encoder\.down\.{i}\.block\.(\d+)\.", n))})
            for i in range(count)
        }
        latent = tensors["decoder.conv_in.weight"].shape[1]
        channels = tensors["encoder.conv_in.weight"].shape[1]
        out = tensors["decoder.conv_out.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError("The file's autoencoder is incomplete or of an unknown kind.") from error
    if len(layers) != 1:
        raise CheckpointError("The file's autoencoder has levels of different depth, which is unknown here.")
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
        "in_channels": channels,
        "out_channels": out,
        "latent_channels": latent,
        "layers_per_block": layers.pop(),
        "mid_block_add_attention": "decoder.mid.attn_1.q.weight" in tensors,
        "norm_num_groups": math.gcd(32, *widths),
        "sample_size": sample_size,
        "use_quant_conv": "quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors,
        **scaling,
    }


def weights(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Every tensor by diffusers' name; what belongs to training only (losses, EMA) is left out.

    Raises:
        CheckpointError: A tensor of encoder or decoder that has no place in the model.
    """
    levels = len(config["block_out_channels"])
    found = {}
    for name, tensor in tensors.items():
        if not name.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")):
            continue
        new = rename(name, levels)
        if ".attentions." in new and new.endswith(".weight") and len(tensor.shape) == 4:
            tensor = reshaped(tensor, tensor.shape[:2])
        found[new] = tensor
    return found


def rename(name: str, levels: int) -> str:
    """diffusers' name of one weight; the original counts the decoder's levels from the picture inwards."""
    half, _, rest = name.partition(".")
    if half not in ("encoder", "decoder"):
        return name
    if match := DOWN.match(rest):
        level, what, layer, inner = match[1], match[2], match[3], match[4]
        if what == "downsample":
            return f"{half}.down_blocks.{level}.downsamplers.0.{inner}"
        return f"{half}.down_blocks.{level}.resnets.{layer}.{_resnet(inner)}"
    if match := UP.match(rest):
        level, what, layer, inner = str(levels - 1 - int(match[1])), match[2], match[3], match[4]
        if what == "upsample":
            return f"{half}.up_blocks.{level}.upsamplers.0.{inner}"
        return f"{half}.up_blocks.{level}.resnets.{layer}.{_resnet(inner)}"
    if match := MID.match(rest):
        if match[2] is not None:
            return f"{half}.mid_block.resnets.{int(match[2]) - 1}.{_resnet(match[3])}"
        part, _, kind = match[3].rpartition(".")
        if part in ATTENTION:
            return f"{half}.mid_block.attentions.0.{ATTENTION[part]}.{kind}"
    if rest.startswith("norm_out."):
        return f"{half}.conv_norm_out.{rest.removeprefix('norm_out.')}"
    if rest.startswith(("conv_in.", "conv_out.")):
        return name
    raise CheckpointError(f"The file's autoencoder holds {name!r}, which no model of this kind has.")


def _resnet(inner: str) -> str:
    return inner.replace("nin_shortcut.", "conv_shortcut.")
