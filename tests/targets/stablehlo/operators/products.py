"""Arguments for products, attention, norms and sums."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import strategies as st

from tests.targets.stablehlo.operators.drawing import (
    ANY,
    FLOATS,
    NUMBERS,
    Call,
    Draw,
    axis,
    case,
    dims,
    shape,
    tensor,
)


@case("aten.mm.default")
def mm(draw: Draw) -> Call:
    n, k, m = (draw(st.integers(1, 9)) for _ in range(3))
    dtype = (draw(st.sampled_from(FLOATS)),)
    return [tensor(draw, (n, k), dtype), tensor(draw, (k, m), dtype)], {}


@case("aten.bmm.default")
def bmm(draw: Draw) -> Call:
    b, n, k, m = (draw(st.integers(1, 6)) for _ in range(4))
    dtype = (draw(st.sampled_from(FLOATS)),)
    return [tensor(draw, (b, n, k), dtype), tensor(draw, (b, k, m), dtype)], {}


@case("aten.addmm.default")
def addmm(draw: Draw) -> Call:
    n, k, m = (draw(st.integers(1, 9)) for _ in range(3))
    dtype = (draw(st.sampled_from(FLOATS)),)
    bias = tensor(draw, draw(st.sampled_from([(m,), (n, m), (1, m)])), dtype)
    more = {"beta": draw(st.sampled_from([1, 0.5])), "alpha": draw(st.sampled_from([1, 2]))}
    return [bias, tensor(draw, (n, k), dtype), tensor(draw, (k, m), dtype)], more


@case("aten.baddbmm.default")
def baddbmm(draw: Draw) -> Call:
    b, n, k, m = (draw(st.integers(1, 6)) for _ in range(4))
    dtype = (draw(st.sampled_from(FLOATS)),)
    return [
        tensor(draw, (b, n, m), dtype),
        tensor(draw, (b, n, k), dtype),
        tensor(draw, (b, k, m), dtype),
    ], {}


@case("aten.convolution.default")
def convolution(draw: Draw) -> Call:
    sides = draw(st.integers(1, 3))
    groups, into, out = (draw(st.integers(1, 3)) for _ in range(3))
    transposed = draw(st.booleans())
    kernel = [draw(st.integers(1, 3)) for _ in range(sides)]
    stride = [draw(st.integers(1, 3)) for _ in range(sides)]
    dilation = [draw(st.integers(1, 2)) for _ in range(sides)]
    padding = [draw(st.integers(0, k - 1)) for k in kernel]
    extra = [draw(st.integers(0, s - 1)) if transposed and s > 1 else 0 for s in stride]
    dtype = (draw(st.sampled_from(FLOATS)),)
    size = [draw(st.integers(5, 8)) for _ in range(sides)]
    x = tensor(draw, (draw(st.integers(1, 2)), groups * into, *size), dtype)
    held = (groups * into, out) if transposed else (groups * out, into)
    bias = tensor(draw, (groups * out,), dtype) if draw(st.booleans()) else None
    return [
        x,
        tensor(draw, (*held, *kernel), dtype),
        bias,
        stride,
        padding,
        dilation,
        transposed,
        extra,
        groups,
    ], {}


@case("aten.scaled_dot_product_attention.default")
def attention(draw: Draw) -> Call:
    b, h, q, k, d = (draw(st.integers(1, 5)) for _ in range(5))
    dtype = (draw(st.sampled_from(FLOATS)),)
    kind = draw(st.sampled_from(["none", "causal", "bool", "additive"]))
    mask = None
    if kind == "bool":
        mask = tensor(draw, (q, k), (torch.bool,))
    elif kind == "additive":
        mask = tensor(draw, (b, 1, q, k), dtype)
    more: dict[str, Any] = {"scale": draw(st.sampled_from([None, 0.3]))}
    query = tensor(draw, (b, h, q, d), dtype)
    key, value = tensor(draw, (b, h, k, d), dtype), tensor(draw, (b, h, k, d + 1), dtype)
    return [query, key, value, mask, 0.0, kind == "causal"], more


@case("aten.embedding.default")
def embedding(draw: Draw) -> Call:
    rows = draw(st.integers(1, 9))
    ids = torch.randint(0, rows, shape(draw, 1, 3), generator=torch.Generator().manual_seed(0))
    return [
        tensor(draw, (rows, draw(st.integers(1, 5)))),
        ids.to(draw(st.sampled_from([torch.int32, torch.int64]))),
    ], {}


@case("aten.native_layer_norm.default")
def layer_norm(draw: Draw) -> Call:
    dtype = (draw(st.sampled_from(FLOATS)),)
    value = tensor(draw, (*shape(draw, 1, 3), 8), dtype)
    rank = draw(st.integers(1, value.dim()))
    last = tuple(value.shape[-rank:])
    given = [tensor(draw, last, dtype) if draw(st.booleans()) else None for _ in range(2)]
    return [value * 3 + 2, list(last), *given, 1e-5], {}


@case("aten.native_group_norm.default")
def group_norm(draw: Draw) -> Call:
    dtype = (draw(st.sampled_from(FLOATS)),)
    groups, each = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    size = shape(draw, 1, 3)
    n, c = draw(st.integers(1, 3)), groups * each
    value = tensor(draw, (n, c, *size, 8), dtype) * 3 + 2
    given = [tensor(draw, (c,), dtype) if draw(st.booleans()) else None for _ in range(2)]
    return [value, *given, n, c, value[0, 0].numel(), groups, 1e-5], {}


@case("aten._softmax.default", "aten._log_softmax.default")
def softmax(draw: Draw) -> Call:
    value = tensor(draw, shape(draw, 1))
    return [value, axis(draw, value), False], {}


@case("aten.sum.dim_IntList")
def sum_dims(draw: Draw) -> Call:
    value = tensor(draw, shape(draw, 1), (torch.float32, torch.bfloat16, torch.int32, torch.bool))
    return [value, dims(draw, value), draw(st.booleans())], {}


@case("aten.sum.default")
def sum_all(draw: Draw) -> Call:
    more = {"dtype": torch.float32} if draw(st.booleans()) else {}
    return [tensor(draw, shape(draw), (torch.float32, torch.int32))], more


@case("aten.mean.dim")
def mean_dims(draw: Draw) -> Call:
    value = tensor(draw, shape(draw, 1))
    return [value, dims(draw, value), draw(st.booleans())], {}


@case("aten.mean.default")
def mean_all(draw: Draw) -> Call:
    return [tensor(draw, shape(draw))], {}


@case("aten.var.correction")
def variance(draw: Draw) -> Call:
    value = tensor(draw, (*shape(draw, 1, 2), 5))
    return [value, [-1]], {"correction": draw(st.sampled_from([0, 1])), "keepdim": draw(st.booleans())}


@case("aten.amax.default", "aten.amin.default")
def extreme(draw: Draw) -> Call:
    value = tensor(draw, shape(draw, 1), NUMBERS)
    return [value, dims(draw, value), draw(st.booleans())], {}


@case("aten.linalg_vector_norm.default")
def vector_norm(draw: Draw) -> Call:
    value = tensor(draw, shape(draw, 1))
    order = draw(st.sampled_from([2, 1, 0, 3, math.inf, -math.inf]))
    return [value, order, draw(st.one_of(st.none(), st.just(dims(draw, value)))), draw(st.booleans())], {}


@case("aten.any.dim", "aten.all.dim")
def truth(draw: Draw) -> Call:
    value = tensor(draw, shape(draw, 1), ANY)
    return [value, axis(draw, value), draw(st.booleans())], {}


@case("aten.any.dims", "aten.all.dims")
def truth_dims(draw: Draw) -> Call:
    value = tensor(draw, shape(draw, 1), ANY)
    return [value, dims(draw, value), draw(st.booleans())], {}


@case("aten.any.default", "aten.all.default")
def truth_all(draw: Draw) -> Call:
    return [tensor(draw, shape(draw), ANY)], {}


@case("aten.argmax.default", "aten.argmin.default")
def argument(draw: Draw) -> Call:
    value = tensor(draw, shape(draw, 1), (torch.float32, torch.int64))
    return [value, draw(st.sampled_from([None, -1, 0])), draw(st.booleans())], {}


@case("aten.cumsum.default")
def cumsum(draw: Draw) -> Call:
    value = tensor(draw, shape(draw, 1), (*FLOATS, torch.int32, torch.bool))
    return [value, axis(draw, value)], {}
