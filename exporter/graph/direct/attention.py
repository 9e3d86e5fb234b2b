"""Attention in each of its three forms."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

from exporter.graph.direct.emitter import Emitter, NotCovered, Operand, same_dim


def scaled_dot_product(
    emitter: Emitter,
    node: Node,
    query: Operand,
    key: Operand,
    value: Operand,
    attn_mask: Operand | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Operand:
    """softmax(query · keyᵀ · scale + mask) · value, with scale = 1 / sqrt(size) by default.

    Vaswani et al., Attention Is All You Need, 2017, equation 1. All tensors are (batch, heads, tokens, size).
    """
    if dropout_p or enable_gqa or emitter.fake(node.args[0]).dim() != 4:
        raise NotCovered("attention with dropout or grouped keys")
    mask = _mask(emitter, node, query, attn_mask)
    form = {"fused": _fused, "opset23": _standard, "decomposed": _decomposed}[emitter.attention]
    return form(emitter, node, query, key, value, mask, is_causal, scale)


def _mask(emitter: Emitter, node: Node, tokens: Operand, mask: Operand | None) -> Operand | None:
    """The mask as numbers to add to the scores; one row for all tokens is repeated where an operator wants
    that."""
    if mask is None:
        return None
    argument = node.args[3] if len(node.args) > 3 else node.kwargs["attn_mask"]
    query, fake = emitter.fake(node.args[0]), emitter.fake(argument)
    one_row = fake.dim() == 4 and same_dim(fake.shape[2], 1)
    if fake.dim() != 4 or not (one_row or same_dim(fake.shape[2], query.shape[2])):
        raise NotCovered("an attention mask without a row per token")
    if fake.dtype == torch.bool:
        # The lowest finite number rather than -inf: a row that is masked out whole stays finite.
        lowest = torch.tensor(torch.finfo(query.dtype).min, dtype=query.dtype)
        mask = emitter.emit("Where", [mask, torch.tensor(0, dtype=query.dtype), lowest])
    else:
        mask = emitter.cast(mask, query.dtype, fake.dtype)
    if not one_row or emitter.attention == "decomposed":
        return mask
    # The operators of the other forms broadcast over batch and heads only (ONNX Runtime 1.32).
    one, wide = emitter.ints([1]), emitter.emit("Shape", [tokens], {"start": 2, "end": 3})
    return emitter.emit("Expand", [mask, emitter.emit("Concat", [one, one, wide, one], {"axis": 0})])


def _rows(emitter: Emitter, argument: Any, tensor: Operand) -> Operand:
    """(batch, heads, tokens, size) → (batch, tokens, heads * size)."""
    fake = emitter.fake(argument)
    batch, heads, tokens, size = fake.shape
    swapped = emitter.permute(tensor, [0, 2, 1, 3])
    emitter.note(swapped, fake.transpose(1, 2))
    return emitter.reshape(swapped, (batch, tokens, heads, size), (batch, tokens, heads * size))


def _heads(emitter: Emitter, node: Node, rows: Operand) -> Operand:
    """(batch, tokens, heads * size) → (batch, heads, tokens, size)."""
    fake = node.meta["val"]
    batch, heads, tokens, size = fake.shape
    emitter.note(rows, fake.transpose(1, 2).flatten(2))
    split = emitter.reshape(rows, (batch, tokens, heads * size), (batch, tokens, heads, size))
    emitter.note(split, fake.transpose(1, 2))
    return emitter.permute(split, [0, 2, 1, 3])


def _fused(
    emitter: Emitter, node: Node, query: Operand, key: Operand, value: Operand,
    mask: Operand | None, causal: bool, scale: float | None,
) -> Operand:  # fmt: skip
    """com.microsoft MultiHeadAttention; its mask (`attention_bias`) broadcasts over batch and heads only."""
    inputs: list[Any] = [_rows(emitter, a, x) for a, x in zip(node.args, (query, key, value), strict=False)]
    options: dict[str, Any] = {"num_heads": int(emitter.fake(node.args[0]).shape[1])}
    if scale is not None:
        options["scale"] = float(scale)
    if causal:
        options["unidirectional"] = 1
    if mask is not None:
        inputs += [None, None, mask]
    return _heads(emitter, node, emitter.emit("MultiHeadAttention", inputs, options, domain="com.microsoft"))


def _standard(
    emitter: Emitter, node: Node, query: Operand, key: Operand, value: Operand,
    mask: Operand | None, causal: bool, scale: float | None,
) -> Operand:  # fmt: skip
    """The standard's Attention, opset 23, over (batch, tokens, heads * size)."""
    heads = int(emitter.fake(node.args[0]).shape[1])
    inputs: list[Any] = [_rows(emitter, a, x) for a, x in zip(node.args, (query, key, value), strict=False)]
    options: dict[str, Any] = {"q_num_heads": heads, "kv_num_heads": heads, "is_causal": int(causal)}
    if scale is not None:
        options["scale"] = float(scale)
    if mask is not None:
        inputs.append(mask)
    return _heads(emitter, node, emitter.emit("Attention", inputs, options))


def _decomposed(
    emitter: Emitter, node: Node, query: Operand, key: Operand, value: Operand,
    mask: Operand | None, causal: bool, scale: float | None,
) -> Operand:  # fmt: skip
    """In primitive operators; each side is scaled by the root, which keeps float16 in range."""
    if causal:
        raise NotCovered("causal attention in primitive operators")
    fake = emitter.fake(node.args[0])
    root = math.sqrt(1 / math.sqrt(fake.shape[3]) if scale is None else scale)
    factor = torch.tensor(root, dtype=fake.dtype)
    turned = emitter.permute(key, [0, 1, 3, 2])
    scores = emitter.emit(
        "MatMul", [emitter.emit("Mul", [query, factor]), emitter.emit("Mul", [turned, factor])]
    )
    if mask is not None:
        scores = emitter.emit("Add", [scores, mask])
    return emitter.emit("MatMul", [emitter.emit("Softmax", [scores], {"axis": -1}), value])
