"""How attention is written into the graph.

Models call `torch.nn.functional.scaled_dot_product_attention`. Written out in primitive operators it
keeps the whole score matrix in memory, so by default it becomes one fused operator. The function is
replaced only while the graph is captured; the reference that parity runs is never patched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

from exporter.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

Attention = Literal["fused", "opset23", "decomposed"]
"""`fused`: com.microsoft MultiHeadAttention (ONNX Runtime and OpenVINO know it). `opset23`: the standard's
own Attention operator. `decomposed`: matrix products and a softmax, for runtimes that know neither."""

ATTENTION_MODES: tuple[str, ...] = get_args(Attention)

OPSETS: dict[str, int] = {"fused": 20, "opset23": 23, "decomposed": 20}
"""The default operator set of each mode: the lowest that has every operator the mode needs."""


@contextmanager
def attention_as(mode: Attention) -> Iterator[None]:
    """Inside, attention is captured in the given form."""
    if mode != "fused":
        # The other two need no patch: torch translates attention itself, to one operator from opset 23 on.
        yield
        return
    import torch.nn.functional as functional

    original = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = _fused  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


def _fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Attention as one `com.microsoft::MultiHeadAttention` node.

    The operator wants (batch, tokens, heads * size) tensors and, as `attention_bias`, an additive
    mask that broadcasts to (batch, heads, tokens, key tokens):
    <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MultiHeadAttention>.

    Args:
        query: (batch, heads, tokens, size), floating.
        key: (batch, heads, key tokens, size).
        value: (batch, heads, key tokens, value size).
        attn_mask: Boolean (True = attend) or additive mask that broadcasts to the scores, or None.
        dropout_p: Must be 0: an exported graph does not drop out.
        is_causal: Each token attends to itself and those before.
        scale: Of the scores; 1 / sqrt(size) when None.
        enable_gqa: Fewer key heads than query heads; not supported.

    Returns:
        (batch, heads, tokens, value size).
    """
    import torch

    if enable_gqa or query.dim() != 4 or key.shape[1] != query.shape[1]:
        raise UnsupportedError(
            f"Attention over {tuple(query.shape)} and {tuple(key.shape)} has no fused operator.",
            hint="Export with --attention decomposed.",
        )
    if dropout_p != 0.0:
        raise UnsupportedError("Attention with dropout cannot be exported; the module is in training mode.")
    batch, heads, tokens, _ = query.shape
    width = heads * value.shape[3]
    inputs: list[torch.Tensor | None] = [_merge_heads(query), _merge_heads(key), _merge_heads(value)]
    attributes: dict[str, Any] = {"num_heads": int(heads)}
    if scale is not None:
        attributes["scale"] = float(scale)
    if is_causal:
        attributes["unidirectional"] = 1
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            # The lowest finite number rather than -inf: a row that is masked out whole stays finite.
            lowest = torch.finfo(query.dtype).min
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, lowest)
        while attn_mask.dim() < 4:
            attn_mask = attn_mask.unsqueeze(0)
        # The operator broadcasts the first two dimensions only.
        attn_mask = attn_mask.to(query.dtype).expand(-1, -1, tokens, key.shape[2])
        inputs += [None, None, attn_mask]  # bias, key_padding_mask, attention_bias
    output = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        inputs,
        attributes,
        dtype=query.dtype,
        shape=(batch, tokens, width),
        version=1,
    )
    return output.unflatten(2, (heads, value.shape[3])).transpose(1, 2)


def _merge_heads(tensor: torch.Tensor) -> torch.Tensor:
    """(batch, heads, tokens, size) → (batch, tokens, heads * size)."""
    return tensor.transpose(1, 2).flatten(2)
