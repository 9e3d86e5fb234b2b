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
    mask = _mask(emitter, node, attn_mask)
    form = {"fused": _fused, "opset23": _standard, "decomposed": _decomposed}[emitter.attention]
    return form(emitter, node, query, key, value, mask, is_causal, scale)


def _mask(emitter: Emitter, node: Node, mask: Operand | None) -> Operand | None:
    """The mask as numbers to add to the scores."""
    if mask is None:
        return None
    argument: Any = node.args[3] if len(node.args) > 3 else node.kwargs["attn_mask"]
    asking: Any = node.args[0]
    query, fake = emitter.fake(asking), emitter.fake(argument)
    shape = [] if fake.dim() != 4 else list(fake.shape)
    same_for_all = bool(shape) and shape[2] == 1
    if not shape or not (same_for_all or same_dim(shape[2], query.shape[2])):
        raise NotCovered("an attention mask without a row per token")
    for_each_head = _before_heads(emitter, argument, int(query.shape[1]))
    mask = mask if for_each_head is None else for_each_head
    if same_for_all and emitter.attention != "decomposed":  # these broadcast over batch and heads only
        rows = emitter.emit("Shape", [emitter.env[asking]], {"start": 2, "end": 3})
        wide = emitter.emit("Concat", [emitter.ints([1, 1]), rows, emitter.ints([1])], {"axis": 0})
        mask = emitter.emit("Expand", [mask, wide])
    if fake.dtype == torch.bool:
        # The lowest finite number rather than -inf: a row that is masked out whole stays finite.
        lowest = torch.tensor(torch.finfo(query.dtype).min, dtype=query.dtype)
        return emitter.emit("Where", [mask, torch.tensor(0, dtype=query.dtype), lowest])
    return emitter.cast(mask, query.dtype, fake.dtype)


def _before_heads(emitter: Emitter, mask: Node, heads: int) -> Operand | None:
    """The mask as (batch, 1, rows, keys), where each row of a batch was repeated for every head and then
    split into them: all heads share it. None of any other."""
    repeated = mask.args[0] if str(mask.target) in ("aten.view.default", "aten.reshape.default") else None
    if not isinstance(repeated, Node) or str(repeated.target) != "aten.repeat_interleave.self_int":
        return None
    once: Any = repeated.args[0]
    times, fake = repeated.args[1], emitter.fake(once)
    axis = repeated.args[2] if len(repeated.args) > 2 else repeated.kwargs.get("dim")
    wanted = mask.meta["val"].shape
    if fake.dim() != 3 or axis != 0 or times != heads or not same_dim(wanted[1], heads):
        return None
    if not all(same_dim(a, b) for a, b in zip(fake.shape, (wanted[0], *wanted[2:]), strict=True)):
        return None
    return emitter.emit("Unsqueeze", [emitter.env[once], emitter.ints([1])])


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
