"""CLIP text encoders inside a checkpoint: under transformers' names, or in OpenCLIP's layout.

OpenCLIP keeps query, key and value in one matrix (`attn.in_proj_weight`, rows in that order) and its
projection transposed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from exporter.checkpoints.derived import rows, transposed
from exporter.checkpoints.safetensors_file import StoredTensor
from exporter.errors import CheckpointError

Tensors = Mapping[str, StoredTensor]

OPENCLIP = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
OPENCLIP_TOP = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
LAYER = re.compile(r"^transformer\.resblocks\.(\d+)\.(.+)$")


def infer(
    tensors: Tensors, *, activation: str, layers: int | None = None, projected: bool = False
) -> dict[str, Any]:
    """transformers' config of a CLIP text encoder, from tensors under transformers' names.

    Args:
        tensors: From `clip_weights` or `openclip_weights`.
        activation: `quick_gelu` (CLIP L) or `gelu` (OpenCLIP); no shape shows it.
        layers: Layers that are used; None means all that are there.
        projected: Whether the pipeline uses the projection (`CLIPTextModelWithProjection`).

    Raises:
        CheckpointError: The encoder is incomplete.
    """
    try:
        vocabulary, width = tensors["text_model.embeddings.token_embedding.weight"].shape
        length = tensors["text_model.embeddings.position_embedding.weight"].shape[0]
        inner = tensors["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0]
        found = {m[1] for n in tensors if (m := re.match(r"text_model\.encoder\.layers\.(\d+)\.", n))}
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError("The file's text encoder is incomplete or of an unknown kind.") from error
    projection = tensors.get("text_projection.weight")
    return {
        "architectures": ["CLIPTextModelWithProjection" if projected else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_act": activation,
        "hidden_size": width,
        "intermediate_size": inner,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": length,
        "num_attention_heads": max(width // 64, 1),
        "num_hidden_layers": layers if layers is not None else len(found),
        "projection_dim": projection.shape[0] if projection is not None else width,
        "vocab_size": vocabulary,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }


def clip_weights(tensors: Tensors) -> dict[str, StoredTensor]:
    """An encoder stored under transformers' names, `text_model.` perhaps left out."""
    result = {}
    for name, tensor in tensors.items():
        if name.startswith(("embeddings.", "encoder.", "final_layer_norm.")):
            name = f"text_model.{name}"
        if name.startswith(("text_model.", "text_projection.")) and not name.endswith(".position_ids"):
            result[name] = tensor
    return result


def openclip_weights(tensors: Tensors) -> dict[str, StoredTensor]:
    """An encoder in OpenCLIP's layout, under transformers' names.

    Raises:
        CheckpointError: A layer holds something that no such encoder has.
    """
    result: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if name in OPENCLIP_TOP:
            result[OPENCLIP_TOP[name]] = tensor
        elif name == "text_projection":
            result["text_projection.weight"] = transposed(tensor)
        elif match := LAYER.match(name):
            result.update(_layer(f"text_model.encoder.layers.{match[1]}", match[2], tensor))
    return result


def _layer(layer: str, rest: str, tensor: StoredTensor) -> dict[str, StoredTensor]:
    if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
        third, remainder = divmod(tensor.shape[0], 3)
        if remainder:
            raise CheckpointError(f"The file's text encoder has an odd {tensor.name!r}.")
        kind = rest.rpartition("_")[2]
        return {
            f"{layer}.self_attn.{part}_proj.{kind}": rows(tensor, i * third, (i + 1) * third)
            for i, part in enumerate("qkv")
        }
    part, _, kind = rest.rpartition(".")
    if part not in OPENCLIP:
        raise CheckpointError(f"The file's text encoder holds {tensor.name!r}, which is unknown here.")
    return {f"{layer}.{OPENCLIP[part]}.{kind}": tensor}
