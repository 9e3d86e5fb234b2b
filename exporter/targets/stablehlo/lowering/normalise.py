"""Norms and softmax. Narrow numbers are summed up in float32, as torch does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from exporter.targets.stablehlo.lowering.registry import axes_of, dtype_of, lowers, wide


def _moments(x: Any, axes: Sequence[int]) -> tuple[Any, Any, Any]:
    """Mean, deviation from it and variance: in two passes, for one loses what a large mean swallows."""
    mean = x
    for axis in sorted(axes, reverse=True):  # axis by axis: shorter sums round less
        mean = jnp.mean(mean, axis=axis, keepdims=True)
    deviation = x - mean
    variance = deviation * deviation
    for axis in sorted(axes, reverse=True):
        variance = jnp.mean(variance, axis=axis, keepdims=True)
    return mean, deviation, variance


@lowers("aten.native_layer_norm.default")
def layer_norm(
    x: Any, normalized_shape: Sequence[int], weight: Any, bias: Any, eps: float
) -> tuple[Any, Any, Any]:
    y = wide(x)
    mean, deviation, variance = _moments(y, range(x.ndim - len(normalized_shape), x.ndim))
    rate = lax.rsqrt(variance + eps)
    found = deviation * rate
    if weight is not None:
        found = found * wide(weight)
    if bias is not None:
        found = found + wide(bias)
    return found.astype(x.dtype), mean.astype(x.dtype), rate.astype(x.dtype)


@lowers("aten.native_group_norm.default")
def group_norm(
    x: Any, weight: Any, bias: Any, batch: Any, channels: int, cells: Any, groups: int, eps: float
) -> tuple[Any, Any, Any]:
    """Over (batch, channels, …)."""
    y = wide(x).reshape(x.shape[0], groups, channels // groups, *x.shape[2:])
    mean, deviation, variance = _moments(y, range(2, y.ndim))
    rate = lax.rsqrt(variance + eps)
    found = (deviation * rate).reshape(x.shape)
    places = (1, channels, *[1] * (x.ndim - 2))
    if weight is not None:
        found = found * wide(weight).reshape(places)
    if bias is not None:
        found = found + wide(bias).reshape(places)
    shape = (x.shape[0], groups)
    return found.astype(x.dtype), *(one.reshape(shape).astype(x.dtype) for one in (mean, rate))


@lowers("aten._softmax.default")
def softmax(x: Any, dim: int, half_to_float: bool) -> Any:
    found = jax.nn.softmax(wide(x), axis=dim)
    return found if half_to_float else found.astype(x.dtype)


@lowers("aten._log_softmax.default")
def log_softmax(x: Any, dim: int, half_to_float: bool) -> Any:
    found = jax.nn.log_softmax(wide(x), axis=dim)
    return found if half_to_float else found.astype(x.dtype)


def _summing(function: Any) -> Any:
    def lowered(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
        wanted = dtype_of(dtype) if dtype is not None else x.dtype
        if not jnp.issubdtype(wanted, jnp.floating):
            wanted = jnp.int64
        y = wide(x.astype(wanted))
        return function(y, axis=axes_of(dim, x.ndim), keepdims=keepdim).astype(wanted)

    return lowered


def _over_all(function: Any) -> Any:
    """The overload without dims, whose second argument would be `dim`."""
    return lambda x, *, dtype=None: function(x, None, False, dtype=dtype)


lowers("aten.sum.dim_IntList")(_summing(jnp.sum))
lowers("aten.sum.default")(_over_all(_summing(jnp.sum)))
lowers("aten.mean.dim")(_summing(jnp.mean))
lowers("aten.mean.default")(_over_all(_summing(jnp.mean)))


@lowers("aten.var.correction")
def variance(x: Any, dim: Any = None, *, correction: Any = 1, keepdim: bool = False) -> Any:
    axes = axes_of(dim, x.ndim)
    found = jnp.var(wide(x), axis=axes, keepdims=keepdim, ddof=1 if correction is None else correction)
    return found.astype(x.dtype)


@lowers("aten.amax.default")
def amax(x: Any, dim: Any = (), keepdim: bool = False) -> Any:
    return jnp.max(x, axis=axes_of(dim, x.ndim), keepdims=keepdim)


@lowers("aten.amin.default")
def amin(x: Any, dim: Any = (), keepdim: bool = False) -> Any:
    return jnp.min(x, axis=axes_of(dim, x.ndim), keepdims=keepdim)


@lowers("aten.linalg_vector_norm.default")
def vector_norm(
    x: Any, order: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Any:
    axes = axes_of(dim, x.ndim)
    wanted = dtype_of(dtype) if dtype is not None else x.dtype
    size = jnp.abs(wide(x.astype(wanted)))
    if order == 0:
        found = jnp.sum(size != 0, axis=axes, keepdims=keepdim)
    elif math.isinf(order):
        found = (jnp.max if order > 0 else jnp.min)(size, axis=axes, keepdims=keepdim)
    else:
        found = jnp.sum(size**order, axis=axes, keepdims=keepdim) ** (1 / order)
    return found.astype(wanted)


@lowers("aten.any.dim", "aten.any.dims", "aten.any.default")
def any_of(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return jnp.any(x.astype(jnp.bool_), axis=axes_of(dim, x.ndim), keepdims=keepdim)


@lowers("aten.all.dim", "aten.all.dims", "aten.all.default")
def all_of(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return jnp.all(x.astype(jnp.bool_), axis=axes_of(dim, x.ndim), keepdims=keepdim)


@lowers("aten.argmax.default")
def argmax(x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """The first of equal ones."""
    return jnp.argmax(x, axis=dim, keepdims=keepdim).astype(jnp.int64)


@lowers("aten.argmin.default")
def argmin(x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    return jnp.argmin(x, axis=dim, keepdims=keepdim).astype(jnp.int64)


@lowers("aten.cumsum.default")
def cumsum(x: Any, dim: int, *, dtype: Any = None) -> Any:
    wanted = dtype_of(dtype) if dtype is not None else x.dtype
    if not jnp.issubdtype(wanted, jnp.floating):
        wanted = jnp.int64
    return jnp.cumsum(wide(x.astype(wanted)), axis=dim).astype(wanted) if x.ndim else x.astype(wanted)
