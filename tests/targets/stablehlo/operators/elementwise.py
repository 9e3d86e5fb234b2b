"""Arguments for operators that work on each number by itself."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from tests.targets.stablehlo.operators.drawing import (
    ANY,
    FLOATS,
    NUMBERS,
    Call,
    Draw,
    broadcast,
    case,
    number,
    shape,
    tensor,
    two,
)

UNARY = (
    "sin", "cos", "tan", "tanh", "exp", "erf", "sigmoid", "reciprocal", "expm1",
)  # fmt: skip


@case(*(f"aten.{name}.default" for name in UNARY))
def unary(draw: Draw) -> Call:
    value = tensor(draw, shape(draw), (*FLOATS, torch.int64))
    return [torch.where(value == 0, torch.ones_like(value), value)], {}


@case(*(f"aten.{name}.default" for name in ("log", "sqrt", "rsqrt", "log1p", "log2")))
def positive(draw: Draw) -> Call:
    return [tensor(draw, shape(draw)).abs() + 0.25], {}


@case(*(f"aten.{name}.default" for name in ("neg", "abs", "floor", "ceil", "round", "sign", "trunc")))
def keeping(draw: Draw) -> Call:
    return [tensor(draw, shape(draw), NUMBERS)], {}


@case(*(f"aten.{name}.Tensor" for name in ("eq", "ne", "lt", "le", "gt", "ge")))
def comparing(draw: Draw) -> Call:
    return list(two(draw)), {}


@case(*(f"aten.{name}.Scalar" for name in ("eq", "ne", "lt", "le", "gt", "ge")))
def comparing_number(draw: Draw) -> Call:
    return [tensor(draw, shape(draw), NUMBERS), number(draw)], {}


@case("aten.add.Tensor", "aten.sub.Tensor")
def adding(draw: Draw) -> Call:
    pair = two(draw)
    alpha = draw(st.sampled_from([1, 2]))
    return list(pair), {"alpha": alpha}


@case("aten.add.Scalar", "aten.sub.Scalar", "aten.mul.Scalar", "aten.div.Scalar")
def with_number(draw: Draw) -> Call:
    return [tensor(draw, shape(draw), NUMBERS), number(draw)], {}


@case("aten.mul.Tensor", "aten.maximum.default", "aten.minimum.default")
def pair(draw: Draw) -> Call:
    return list(two(draw)), {}


def nonzero(value: torch.Tensor) -> torch.Tensor:
    return torch.where(value.abs() < 0.25, torch.ones_like(value), value)


@case("aten.div.Tensor", "aten.remainder.Tensor", "aten.fmod.Tensor")
def dividing(draw: Draw) -> Call:
    a, b = two(draw, (torch.float32, torch.int64))
    return [a, nonzero(b)], {}


@case("aten.remainder.Scalar", "aten.fmod.Scalar")
def remainders(draw: Draw) -> Call:
    return [
        tensor(draw, shape(draw), (torch.float32, torch.int64)),
        draw(st.sampled_from([2, 3, 0.5, -3])),
    ], {}


@case("aten.div.Tensor_mode")
def rounding(draw: Draw) -> Call:
    a, b = two(draw, (torch.float32, torch.int64))
    return [a, nonzero(b)], {"rounding_mode": draw(st.sampled_from([None, "floor", "trunc"]))}


@case("aten.div.Scalar_mode")
def rounding_number(draw: Draw) -> Call:
    value = tensor(draw, shape(draw), (torch.float32, torch.int64))
    mode = draw(st.sampled_from([None, "floor", "trunc"]))
    return [value, draw(st.sampled_from([2, -3, 0.5]))], {"rounding_mode": mode}


@case("aten.floor_divide.default")
def floor_dividing(draw: Draw) -> Call:
    a, b = two(draw, (torch.float32, torch.int64))
    return [a, nonzero(b)], {}


@case("aten.pow.Tensor_Scalar")
def power(draw: Draw) -> Call:
    return [tensor(draw, shape(draw)).abs() + 0.25, draw(st.sampled_from([2, 3, -1, 0.5, 1.7, 7]))], {}


@case("aten.pow.Tensor_Tensor")
def powers(draw: Draw) -> Call:
    a, b = two(draw, (torch.float32,))
    return [a.abs() + 0.25, b], {}


@case("aten.pow.Scalar")
def power_of_number(draw: Draw) -> Call:
    return [draw(st.sampled_from([2, 10, 0.5])), tensor(draw, shape(draw))], {}


@case("aten.clamp.default")
def clamp(draw: Draw) -> Call:
    low = draw(st.sampled_from([None, -1, -0.5]))
    high = draw(st.sampled_from([0.5, 1] if low is None else [None, 0.5, 1]))
    return [tensor(draw, shape(draw), NUMBERS), low, high], {}


@case("aten.clamp.Tensor")
def clamp_tensor(draw: Draw) -> Call:
    value = tensor(draw, shape(draw))
    return [value, torch.full((), -0.5).to(value.dtype), torch.full((), 0.5).to(value.dtype)], {}


@case("aten.hardtanh.default")
def hardtanh(draw: Draw) -> Call:
    return [tensor(draw, shape(draw)), -0.5, 0.75], {}


@case("aten.relu.default", "aten.silu.default", "aten.leaky_relu.default", "aten.elu.default")
def activation(draw: Draw) -> Call:
    return [tensor(draw, shape(draw))], {}


@case("aten.gelu.default")
def gelu(draw: Draw) -> Call:
    return [tensor(draw, shape(draw))], {"approximate": draw(st.sampled_from(["none", "tanh"]))}


@case("aten.where.self")
def where(draw: Draw) -> Call:
    a, b = two(draw)
    return [tensor(draw, torch.broadcast_shapes(a.shape, b.shape), (torch.bool,)), a, b], {}


@case("aten.where.ScalarSelf")
def where_number_first(draw: Draw) -> Call:
    size = shape(draw)
    return [tensor(draw, size, (torch.bool,)), number(draw), tensor(draw, size)], {}


@case("aten.where.ScalarOther")
def where_number_last(draw: Draw) -> Call:
    size = shape(draw)
    return [tensor(draw, size, (torch.bool,)), tensor(draw, size), number(draw)], {}


@case("aten.where.Scalar")
def where_numbers(draw: Draw) -> Call:
    return [tensor(draw, shape(draw), (torch.bool,)), 1.5, draw(st.sampled_from([0.0, -2.5]))], {}


@case("aten.masked_fill.Scalar")
def masked_fill(draw: Draw) -> Call:
    size = shape(draw)
    return [tensor(draw, size), tensor(draw, broadcast(draw, size), (torch.bool,)), number(draw)], {}


@case("aten.masked_fill.Tensor")
def masked_fill_tensor(draw: Draw) -> Call:
    size = shape(draw)
    return [tensor(draw, size), tensor(draw, size, (torch.bool,)), torch.tensor(0.5)], {}


@case("aten.logical_not.default")
def logical_not(draw: Draw) -> Call:
    return [tensor(draw, shape(draw), ANY)], {}


@case("aten.logical_and.default", "aten.logical_or.default")
def logical(draw: Draw) -> Call:
    return list(two(draw, ANY)), {}


@case("aten.bitwise_not.default")
def bitwise_not(draw: Draw) -> Call:
    return [tensor(draw, shape(draw), (torch.bool, torch.int64))], {}


@case("aten.bitwise_and.Tensor", "aten.bitwise_or.Tensor")
def bitwise(draw: Draw) -> Call:
    return list(two(draw, (torch.bool, torch.int64))), {}


@case("aten.bitwise_and.Scalar", "aten.bitwise_or.Scalar")
def bitwise_number(draw: Draw) -> Call:
    return [tensor(draw, shape(draw), (torch.int64,)), draw(st.integers(0, 7))], {}


@case("aten.isnan.default", "aten.isinf.default")
def not_finite(draw: Draw) -> Call:
    value = tensor(draw, shape(draw))
    return [
        torch.where(
            value > 0.5, torch.full_like(value, draw(st.sampled_from([float("nan"), -float("inf")]))), value
        )
    ], {}


@case("aten._to_copy.default")
def to_copy(draw: Draw) -> Call:
    return [tensor(draw, shape(draw), ANY)], {"dtype": draw(st.sampled_from([*ANY, torch.float64]))}


@case("aten.clone.default", "aten.alias.default", "aten.lift_fresh_copy.default", "aten.detach.default")
def same(draw: Draw) -> Call:
    return [tensor(draw, shape(draw), ANY)], {}
