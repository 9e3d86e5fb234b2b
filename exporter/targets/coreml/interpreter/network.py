"""Products, convolutions, normalisations, reductions and attention."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as functional

from exporter.errors import ArtifactError
from exporter.targets.coreml.interpreter.registry import flag, number, numbers, operation

Tensor = torch.Tensor


@operation("linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.linear(x, weight, bias)


@operation("matmul")
def matmul(x: Tensor, y: Tensor, transpose_x: Any = False, transpose_y: Any = False) -> Tensor:
    if flag(transpose_x):
        x = x.transpose(-1, -2)
    return torch.matmul(x, y.transpose(-1, -2) if flag(transpose_y) else y)


@operation("einsum")
def einsum(values: tuple[Tensor, ...], equation: str) -> Tensor:
    return torch.einsum(equation, *values)


@operation("conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Any = 1,
) -> Tensor:
    """Convolution over one to three spatial dims; `pad` holds before and after of each."""
    count = x.dim() - 2
    steps = numbers(strides) if strides is not None else [1] * count
    spread = numbers(dilations) if dilations is not None else [1] * count
    before_after = _padding(x, weight, pad_type, pad, steps, spread)
    if any(before != after for before, after in before_after):
        x = functional.pad(x, [size for pair in reversed(before_after) for size in pair])
        padding = [0] * count
    else:
        padding = [before for before, _ in before_after]
    function: Any = (functional.conv1d, functional.conv2d, functional.conv3d)[count - 1]
    return function(x, weight, bias, steps, padding, spread, int(number(groups)))


def _padding(
    x: Tensor, weight: Tensor, kind: str, pad: Tensor | None, steps: list[int], spread: list[int]
) -> list[tuple[int, int]]:
    count = x.dim() - 2
    if kind == "valid":
        return [(0, 0)] * count
    if kind == "custom":
        sizes = numbers(pad) if pad is not None else [0] * (2 * count)
        return [(sizes[2 * i], sizes[2 * i + 1]) for i in range(count)]
    if kind not in ("same", "same_lower"):
        raise ArtifactError(f"conv has no pad_type {kind!r}.")
    result = []
    for axis in range(count):
        size, reach = x.shape[2 + axis], (weight.shape[2 + axis] - 1) * spread[axis] + 1
        total = max((math.ceil(size / steps[axis]) - 1) * steps[axis] + reach - size, 0)
        small, large = total // 2, total - total // 2
        result.append((large, small) if kind == "same_lower" else (small, large))
    return result


@operation("layer_norm")
def layer_norm(
    x: Tensor,
    axes: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Any = 1e-5,
) -> Tensor:
    dims = list(range(x.dim())) if axes is None else sorted(a % x.dim() for a in numbers(axes))
    if dims == list(range(x.dim() - len(dims), x.dim())):
        return functional.layer_norm(x, [x.shape[d] for d in dims], gamma, beta, float(number(epsilon)))
    centred = x - x.mean(dims, keepdim=True)
    scaled = centred / torch.sqrt(centred.square().mean(dims, keepdim=True) + number(epsilon))
    shape = [x.shape[d] if d in dims else 1 for d in range(x.dim())]
    if gamma is not None:
        scaled = scaled * gamma.reshape(shape)
    return scaled if beta is None else scaled + beta.reshape(shape)


@operation("batch_norm")
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Any = 1e-5,
) -> Tensor:
    return functional.batch_norm(x, mean, variance, gamma, beta, False, 0.0, float(number(epsilon)))


@operation("instance_norm")
def instance_norm(
    x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: Any = 1e-5
) -> Tensor:
    return functional.instance_norm(x, weight=gamma, bias=beta, eps=float(number(epsilon)))


@operation("softmax")
def softmax(x: Tensor, axis: Any = -1) -> Tensor:
    return torch.softmax(x, dim=int(number(axis)))


@operation("scaled_dot_product_attention")
def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)


def _axes(x: Tensor, axes: Tensor | None) -> list[int]:
    return list(range(x.dim())) if axes is None else numbers(axes)


@operation("reduce_mean")
def reduce_mean(x: Tensor, axes: Tensor | None = None, keep_dims: Any = False) -> Tensor:
    return x.mean(_axes(x, axes), keepdim=flag(keep_dims))


@operation("reduce_sum")
def reduce_sum(x: Tensor, axes: Tensor | None = None, keep_dims: Any = False) -> Tensor:
    return x.sum(_axes(x, axes), keepdim=flag(keep_dims), dtype=x.dtype)


@operation("reduce_max")
def reduce_max(x: Tensor, axes: Tensor | None = None, keep_dims: Any = False) -> Tensor:
    return x.amax(_axes(x, axes), keepdim=flag(keep_dims))


@operation("reduce_min")
def reduce_min(x: Tensor, axes: Tensor | None = None, keep_dims: Any = False) -> Tensor:
    return x.amin(_axes(x, axes), keepdim=flag(keep_dims))


@operation("reduce_argmax")
def reduce_argmax(x: Tensor, axis: Any = -1, keep_dims: Any = True, output_dtype: str = "int32") -> Tensor:
    """The first place of the largest number; PyTorch promises no order, so equal ones are told apart."""
    axis = int(number(axis))
    size = x.shape[axis]
    shape = [1] * x.dim()
    shape[axis] = size
    places = torch.arange(size).reshape(shape).expand_as(x)
    first = torch.where(x == x.amax(axis, keepdim=True), places, size).amin(axis, keepdim=flag(keep_dims))
    return first.to(torch.int32)
