"""Products: matrices, convolutions, attention, lookups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from exporter.targets.stablehlo.lowering.registry import as_dtype, lowers, precision_for, wide


@lowers("aten.mm.default", "aten.bmm.default")
def matmul(a: Any, b: Any) -> Any:
    return jnp.matmul(a, b, precision=precision_for(a, b))


@lowers("aten.addmm.default")
def addmm(bias: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    product = jnp.matmul(a, b, precision=precision_for(a, b), preferred_element_type=wide(a).dtype)
    product = product if alpha == 1 else product * alpha
    return (product + (wide(bias) if beta == 1 else wide(bias) * beta)).astype(a.dtype)


@lowers("aten.baddbmm.default")
def baddbmm(bias: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    return addmm(bias, a, b, beta=beta, alpha=alpha)


@lowers("aten.convolution.default")
def convolution(
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    """(batch, channels, …) by (out, in / groups, …); transposed: by (in, out / groups, …)."""
    spatial = "DHW"[-(weight.ndim - 2) :]
    layout = (f"NC{spatial}", f"OI{spatial}", f"NC{spatial}")
    sides = weight.ndim - 2
    stride, padding, dilation, extra = (
        list(given) * sides if len(given) == 1 else list(given)
        for given in (stride, padding, dilation, output_padding)
    )
    kernel = weight.shape[2:]
    if transposed:
        inner = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        weight = jnp.flip(jnp.swapaxes(inner, 1, 2), range(3, inner.ndim))
        weight = weight.reshape(-1, *weight.shape[2:])
        reach = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
        pads = [(r, r + e) for r, e in zip(reach, extra, strict=True)]
        steps: dict[str, Any] = {"window_strides": [1] * sides, "lhs_dilation": stride}
    else:
        pads = [(p, p) for p in padding]
        steps = {"window_strides": stride}
    found = lax.conv_general_dilated(
        x,
        weight,
        padding=pads,
        rhs_dilation=dilation,
        dimension_numbers=layout,
        feature_group_count=groups,
        precision=precision_for(x, weight),
        **steps,
    )
    return found if bias is None else found + bias.reshape(1, -1, *[1] * sides)


@lowers("aten.scaled_dot_product_attention.default")
def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Over (…, tokens, size). A row that is masked whole gives zeros, as in torch."""
    if dropout_p:
        raise NotImplementedError("dropout")
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = jnp.repeat(key, times, axis=-3), jnp.repeat(value, times, axis=-3)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    inner, precision = wide(query).dtype, precision_for(query, key)
    scores = jnp.einsum(
        "...qd,...kd->...qk", query, key, precision=precision, preferred_element_type=inner
    ) * as_dtype(scale, inner)
    never = as_dtype(-jnp.inf, inner)
    if is_causal:
        rows = lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 2)
        scores = jnp.where(
            lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1) <= rows, scores, never
        )
    if attn_mask is not None and attn_mask.dtype == jnp.bool_:
        scores = jnp.where(attn_mask, scores, never)
    elif attn_mask is not None:
        scores = scores + attn_mask.astype(inner)
    largest = jnp.max(scores, axis=-1, keepdims=True)
    powers = jnp.exp(scores - jnp.where(jnp.isneginf(largest), 0, largest))
    total = jnp.sum(powers, axis=-1, keepdims=True)
    weights = (powers / jnp.where(total == 0, 1, total)).astype(query.dtype)
    found = jnp.einsum(
        "...qk,...kd->...qd", weights, value, precision=precision, preferred_element_type=inner
    )
    return found.astype(query.dtype)


@lowers("aten.embedding.default")
def embedding(
    weight: Any, indices: Any, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Any:
    """Rows of a table. JAX cannot raise for an index beyond it: such a row is NaN, not another token's."""
    valid = (indices >= 0) & (indices < weight.shape[0])
    rows = jnp.take(weight, jnp.clip(indices, 0, weight.shape[0] - 1), axis=0, mode="clip")
    return jnp.where(valid[..., None], rows, as_dtype(jnp.nan, rows.dtype))
