"""T5 encoders inside a checkpoint, under transformers' own names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exporter.checkpoints.original.tables import count, shape_of
from exporter.checkpoints.safetensors_file import StoredTensor

Tensors = Mapping[str, StoredTensor]
WHAT = "T5 encoder"
FIRST = "encoder.block.0.layer"


def infer(tensors: Tensors) -> dict[str, Any]:
    """transformers' config of a `T5EncoderModel`, from the shapes; the rest as T5 1.1 is published.

    Raises:
        CheckpointError: The encoder is incomplete.
    """
    vocabulary, width = shape_of(tensors, "shared.weight", 2, WHAT)
    buckets, heads = shape_of(tensors, f"{FIRST}.0.SelfAttention.relative_attention_bias.weight", 2, WHAT)
    inner = shape_of(tensors, f"{FIRST}.0.SelfAttention.q.weight", 2, WHAT)[0]
    gated = f"{FIRST}.1.DenseReluDense.wi_0.weight" in tensors
    feed = shape_of(tensors, f"{FIRST}.1.DenseReluDense.{'wi_0' if gated else 'wi'}.weight", 2, WHAT)[0]
    layers = count(tensors, "encoder.block", WHAT)
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "d_model": width,
        "d_kv": max(inner // heads, 1),
        "d_ff": feed,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": heads,
        "vocab_size": vocabulary,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "layer_norm_epsilon": 1e-06,
        "dropout_rate": 0.1,
        "is_encoder_decoder": True,
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def weights(tensors: Tensors) -> dict[str, StoredTensor]:
    """The encoder's tensors, without what only the decoder or a sampler has."""
    return {n: t for n, t in tensors.items() if n == "shared.weight" or n.startswith("encoder.")}
