"""Operators that work on each number by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from exporter.targets.stablehlo.lowering.registry import (
    as_dtype,
    dtype_of,
    floating,
    is_array,
    lowers,
    result_dtype,
    together,
    wide,
)

UNARY: dict[str, Callable[[Any], Any]] = {
    "sin": jnp.sin, "cos": jnp.cos, "tan": jnp.tan, "tanh": jnp.tanh, "exp": jnp.exp, "log": jnp.log,
    "sqrt": jnp.sqrt, "rsqrt": lax.rsqrt, "erf": lax.erf, "sigmoid": jax.nn.sigmoid,
    "reciprocal": lambda x: 1 / x, "log1p": jnp.log1p, "expm1": jnp.expm1, "log2": jnp.log2,
}  # fmt: skip
KEEPING: dict[str, Callable[[Any], Any]] = {
    "neg": jnp.negative, "abs": jnp.abs, "floor": jnp.floor, "ceil": jnp.ceil, "round": jnp.round,
    "sign": jnp.sign, "trunc": jnp.trunc,
}  # fmt: skip
COMPARING: dict[str, Callable[[Any, Any], Any]] = {
    "eq": jnp.equal, "ne": jnp.not_equal, "lt": jnp.less, "le": jnp.less_equal, "gt": jnp.greater,
    "ge": jnp.greater_equal,
}  # fmt: skip


def _unary(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def lowered(x: Any) -> Any:
        x = floating(x)
        return function(wide(x)).astype(x.dtype)

    return lowered


def _keeping(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: function(x).astype(x.dtype)


def _comparing(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda a, b: function(*together(a, b))


for _name, _function in UNARY.items():
    lowers(f"aten.{_name}.default")(_unary(_function))
for _name, _function in KEEPING.items():
    lowers(f"aten.{_name}.default")(_keeping(_function))
for _name, _pair in COMPARING.items():
    lowers(f"aten.{_name}.Tensor", f"aten.{_name}.Scalar")(_comparing(_pair))


@lowers("aten.add.Tensor", "aten.add.Scalar")
def add(a: Any, b: Any, alpha: Any = 1) -> Any:
    a, b = together(a, b)
    if alpha != 1:
        b = b * as_dtype(alpha, b.dtype)
    return jnp.logical_or(a, b) if a.dtype == jnp.bool_ else a + b


@lowers("aten.sub.Tensor", "aten.sub.Scalar")
def sub(a: Any, b: Any, alpha: Any = 1) -> Any:
    a, b = together(a, b)
    return a - (b if alpha == 1 else b * as_dtype(alpha, b.dtype))


@lowers("aten.mul.Tensor", "aten.mul.Scalar")
def mul(a: Any, b: Any) -> Any:
    a, b = together(a, b)
    return a * b


@lowers("aten.div.Tensor", "aten.div.Scalar")
def div(a: Any, b: Any) -> Any:
    dtype = result_dtype(a, b)
    dtype = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.float32
    return as_dtype(a, dtype) / as_dtype(b, dtype)


@lowers("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def div_mode(a: Any, b: Any, rounding_mode: str | None = None) -> Any:
    if rounding_mode is None:
        return div(a, b)
    a, b = together(a, b)
    if rounding_mode == "floor":
        return jnp.floor_divide(a, b)
    a, b = jnp.broadcast_arrays(a, b)
    return lax.div(a, b) if jnp.issubdtype(a.dtype, jnp.integer) else jnp.trunc(a / b)


@lowers("aten.floor_divide.default")
def floor_divide(a: Any, b: Any) -> Any:
    return div_mode(a, b, rounding_mode="floor")


@lowers("aten.remainder.Tensor", "aten.remainder.Scalar")
def remainder(a: Any, b: Any) -> Any:
    """Of the sign of the divisor."""
    return jnp.remainder(*together(a, b))


@lowers("aten.fmod.Tensor", "aten.fmod.Scalar")
def fmod(a: Any, b: Any) -> Any:
    """Of the sign of the dividend."""
    return jnp.fmod(*together(a, b))


@lowers("aten.pow.Tensor_Tensor", "aten.pow.Tensor_Scalar", "aten.pow.Scalar")
def power(a: Any, b: Any) -> Any:
    dtype = result_dtype(a, b)
    if is_array(a) and not is_array(b) and int(b) == b and abs(b) <= 4:
        return lax.integer_pow(as_dtype(a, dtype), int(b))  # as torch, products for small exponents
    base, exponent = wide(as_dtype(a, dtype)), wide(as_dtype(b, dtype))
    return jnp.power(base, exponent).astype(dtype)


@lowers("aten.maximum.default")
def maximum(a: Any, b: Any) -> Any:
    return jnp.maximum(*together(a, b))


@lowers("aten.minimum.default")
def minimum(a: Any, b: Any) -> Any:
    return jnp.minimum(*together(a, b))


@lowers("aten.clamp.default", "aten.clamp.Tensor")
def clamp(x: Any, min: Any = None, max: Any = None) -> Any:
    dtype = result_dtype(x, min, max)
    x = as_dtype(x, dtype)
    if min is not None:
        x = jnp.maximum(x, as_dtype(min, dtype))
    return x if max is None else jnp.minimum(x, as_dtype(max, dtype))


@lowers("aten.hardtanh.default")
def hardtanh(x: Any, min_val: Any = -1, max_val: Any = 1) -> Any:
    return clamp(x, as_dtype(min_val, x.dtype), as_dtype(max_val, x.dtype))


@lowers("aten.relu.default")
def relu(x: Any) -> Any:
    return jnp.maximum(x, jnp.zeros((), x.dtype))


@lowers("aten.leaky_relu.default")
def leaky_relu(x: Any, negative_slope: float = 0.01) -> Any:
    return jnp.where(x > 0, x, x * as_dtype(negative_slope, x.dtype))


@lowers("aten.elu.default")
def elu(x: Any, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Any:
    y = wide(x)
    negative = alpha * jnp.expm1(jnp.minimum(y, 0) * input_scale)
    return (scale * jnp.where(y > 0, y, negative)).astype(x.dtype)


@lowers("aten.silu.default")
def silu(x: Any) -> Any:
    y = wide(x)
    return (y * jax.nn.sigmoid(y)).astype(x.dtype)


@lowers("aten.gelu.default")
def gelu(x: Any, approximate: str = "none") -> Any:
    y = wide(x)
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi) * (y + 0.044715 * y * y * y)
        return (0.5 * y * (1 + jnp.tanh(inner))).astype(x.dtype)
    return (0.5 * y * (1 + lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)


@lowers("aten.where.self", "aten.where.ScalarSelf", "aten.where.ScalarOther", "aten.where.Scalar")
def where(condition: Any, a: Any, b: Any) -> Any:
    a, b = together(a, b)
    return jnp.where(condition.astype(jnp.bool_), a, b)


@lowers("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(x: Any, mask: Any, value: Any) -> Any:
    return jnp.where(mask, as_dtype(value, x.dtype), x)


@lowers("aten.logical_not.default")
def logical_not(x: Any) -> Any:
    return jnp.logical_not(x)


@lowers("aten.logical_and.default")
def logical_and(a: Any, b: Any) -> Any:
    return jnp.logical_and(a, b)


@lowers("aten.logical_or.default")
def logical_or(a: Any, b: Any) -> Any:
    return jnp.logical_or(a, b)


@lowers("aten.bitwise_not.default")
def bitwise_not(x: Any) -> Any:
    return jnp.bitwise_not(x)


@lowers("aten.bitwise_and.Tensor", "aten.bitwise_and.Scalar")
def bitwise_and(a: Any, b: Any) -> Any:
    return jnp.bitwise_and(*together(a, b))


@lowers("aten.bitwise_or.Tensor", "aten.bitwise_or.Scalar")
def bitwise_or(a: Any, b: Any) -> Any:
    return jnp.bitwise_or(*together(a, b))


@lowers("aten.isnan.default")
def isnan(x: Any) -> Any:
    return jnp.isnan(x)


@lowers("aten.isinf.default")
def isinf(x: Any) -> Any:
    return jnp.isinf(x)


@lowers("aten._to_copy.default")
def to_copy(x: Any, *, dtype: Any = None, **_: Any) -> Any:
    return x if dtype is None else x.astype(dtype_of(dtype))


@lowers("aten.clone.default", "aten.alias.default", "aten.lift_fresh_copy.default", "aten.detach.default")
def same(x: Any, **_: Any) -> Any:
    return x
