"""Elementwise operations, comparisons, casts and activations.

Definitions: `coremltools.converters.mil.mil.ops.defs` (iOS15 to iOS18), class of the same name.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional

from exporter.errors import ArtifactError
from exporter.targets.coreml.interpreter.registry import OPERATIONS, number, operation

Tensor = torch.Tensor

UNARY = {
    "abs": torch.abs, "ceil": torch.ceil, "cos": torch.cos, "erf": torch.erf, "exp": torch.exp,
    "floor": torch.floor, "relu": torch.relu, "round": torch.round, "sigmoid": torch.sigmoid,
    "sign": torch.sign, "silu": functional.silu, "sin": torch.sin, "softsign": functional.softsign,
    "sqrt": torch.sqrt, "square": torch.square, "tanh": torch.tanh, "logical_not": torch.logical_not,
}  # fmt: skip
BINARY = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "maximum": torch.maximum,
    "minimum": torch.minimum, "pow": torch.pow, "mod": torch.remainder, "equal": torch.eq,
    "not_equal": torch.ne, "greater": torch.gt, "greater_equal": torch.ge, "less": torch.lt,
    "less_equal": torch.le, "logical_and": torch.logical_and, "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
}  # fmt: skip


def _unary(function: Any) -> Any:
    return lambda x: function(x)


def _binary(function: Any) -> Any:
    return lambda x, y: function(x, y)


for _name, _function in UNARY.items():
    OPERATIONS[_name] = _unary(_function)
for _name, _function in BINARY.items():
    OPERATIONS[_name] = _binary(_function)


@operation("real_div")
def real_div(x: Tensor, y: Tensor) -> Tensor:
    return torch.true_divide(x, y)


@operation("floor_div")
def floor_div(x: Tensor, y: Tensor) -> Tensor:
    return torch.floor_divide(x, y)


@operation("identity")
def identity(x: Any) -> Any:
    return x


@operation("rsqrt")
def rsqrt(x: Tensor, epsilon: Any = 1e-12) -> Tensor:
    return torch.rsqrt(x + number(epsilon))


@operation("inverse")
def inverse(x: Tensor, epsilon: Any = 1e-4) -> Tensor:
    return 1 / (x + number(epsilon))


@operation("log")
def log(x: Tensor, epsilon: Any = 1e-45) -> Tensor:
    return torch.log(x + number(epsilon))


@operation("clip")
def clip(x: Tensor, alpha: Any, beta: Any) -> Tensor:
    return x.clamp(number(alpha), number(beta))


@operation("leaky_relu")
def leaky_relu(x: Tensor, alpha: Any = 0.01) -> Tensor:
    return functional.leaky_relu(x, number(alpha))


@operation("gelu")
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "EXACT":
        return functional.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return functional.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise ArtifactError(f"gelu has no mode {mode!r}.")


@operation("select")
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond, a, b)


CASTS = {
    "fp16": torch.float16, "fp32": torch.float32, "int32": torch.int32, "bool": torch.bool,
    "int8": torch.int8, "uint8": torch.uint8, "int16": torch.int16, "uint16": torch.int32,
}  # fmt: skip


@operation("cast")
def cast(x: Tensor, dtype: str) -> Tensor:
    """To an integer the fraction is cut off, as in C."""
    if dtype not in CASTS:
        raise ArtifactError(f"cast knows no type {dtype!r}.")
    return x.to(CASTS[dtype])
