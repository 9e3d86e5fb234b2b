"""Arguments for every operator that has a lowering: shapes, dtypes and attributes drawn by hypothesis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st

Call = tuple[list[Any], dict[str, Any]]
Draw = Callable[[st.SearchStrategy[Any]], Any]
CASES: dict[str, Callable[[Draw], Call]] = {}
FLOATS = (torch.float32, torch.bfloat16)
NUMBERS = (*FLOATS, torch.int64, torch.int32)
ANY = (*NUMBERS, torch.bool)


def case(*names: str) -> Callable[[Callable[[Draw], Call]], Callable[[Draw], Call]]:
    def register(make: Callable[[Draw], Call]) -> Callable[[Draw], Call]:
        for name in names:
            assert name not in CASES, name
            CASES[name] = make
        return make

    return register


def shape(draw: Draw, least: int = 0, most: int = 4) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.integers(1, 5), min_size=least, max_size=most)))


def tensor(draw: Draw, size: tuple[int, ...], dtypes: tuple[torch.dtype, ...] = FLOATS) -> torch.Tensor:
    """Unit noise, or integers from -9 to 9."""
    dtype = draw(st.sampled_from(dtypes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    if dtype == torch.bool:
        return torch.rand(size, generator=generator) < 0.5
    if not dtype.is_floating_point:
        return torch.randint(-9, 10, size, generator=generator, dtype=dtype)
    return torch.randn(size, generator=generator).to(dtype)


def axis(draw: Draw, value: torch.Tensor) -> int:
    return draw(st.integers(-value.dim(), value.dim() - 1))


def broadcast(draw: Draw, size: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to this one."""
    kept = size[draw(st.integers(0, len(size))) :]
    return tuple(n if draw(st.booleans()) else 1 for n in kept)


def number(draw: Draw) -> Any:
    return draw(st.one_of(st.integers(1, 5), st.floats(0.25, 4, width=32)))


def two(draw: Draw, dtypes: tuple[torch.dtype, ...] = NUMBERS) -> list[torch.Tensor]:
    """Two tensors of dtypes of their own, one of which broadcasts to the other."""
    size = shape(draw)
    pair = [tensor(draw, size, dtypes), tensor(draw, broadcast(draw, size), dtypes)]
    return pair if draw(st.booleans()) else pair[::-1]


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


def dims(draw: Draw, value: torch.Tensor) -> list[int]:
    every = list(range(value.dim()))
    return sorted(draw(st.sets(st.sampled_from(every), min_size=1)))


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


@case("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default")
def view(draw: Draw) -> Call:
    a, b, c = (draw(st.integers(1, 4)) for _ in range(3))
    return [
        tensor(draw, (a, b, c), ANY),
        draw(st.sampled_from([[a * b, c], [c, b, a], [-1], [a, -1], [a, 1, b, c]])),
    ], {}


@case("aten.permute.default")
def permute(draw: Draw) -> Call:
    value = tensor(draw, shape(draw), ANY)
    return [value, list(draw(st.permutations(range(value.dim()))))], {}


@case("aten.unsqueeze.default")
def unsqueeze(draw: Draw) -> Call:
    value = tensor(draw, shape(draw), ANY)
    return [value, draw(st.integers(-value.dim() - 1, value.dim()))], {}


@case("aten.squeeze.dims")
def squeeze(draw: Draw) -> Call:
    value = tensor(draw, shape(draw, 1), ANY)
    return [value, dims(draw, value)], {}


@case("aten.squeeze.dim")
def squeeze_one(draw: Draw) -> Call:
    value = tensor(draw, shape(draw, 1), ANY)
    return [value, axis(draw, value)], {}


@case("aten.expand.default")
def expand(draw: Draw) -> Call:
    size = shape(draw)
    value = tensor(draw, broadcast(draw, size), ANY)
    lead = len(size) - value.dim()
    wanted = [
        n if i < lead or value.shape[i - lead] != n or draw(st.booleans()) else -1 for i, n in enumerate(size)
    ]
    return [value, wanted], {}


@case("aten.repeat.default")
def repeat(draw: Draw) -> Call:
    value = tensor(draw, shape(draw, 0, 3), ANY)
    return [value, draw(st.lists(st.integers(1, 3), min_size=value.dim(), max_size=value.dim() + 1))], {}


@case("aten.cat.default")
def cat(draw: Draw) -> Call:
    size = shape(draw, 1, 3)
    dim = draw(st.integers(-len(size), len(size) - 1))
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        own = list(size)
        own[dim] = draw(st.integers(1, 4))
        parts.append(tensor(draw, tuple(own), ANY))
    if draw(st.booleans()):
        parts.append(torch.zeros(0, dtype=parts[0].dtype))
    return [parts, dim], {}


@case("aten.stack.default")
def stack(draw: Draw) -> Call:
    size = shape(draw, 0, 3)
    return [
        [tensor(draw, size, ANY) for _ in range(draw(st.integers(1, 3)))],
        draw(st.integers(0, len(size))),
    ], {}


@case("aten.split_with_sizes.default")
def split(draw: Draw) -> Call:
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    return [tensor(draw, (2, sum(sizes), 3), ANY), sizes, draw(st.sampled_from([1, -2]))], {}


@case("aten.slice.Tensor")
def slicing(draw: Draw) -> Call:
    value = tensor(draw, shape(draw, 1), ANY)
    place = st.one_of(st.none(), st.integers(-6, 6), st.just((1 << 63) - 1))
    return [
        value,
        axis(draw, value),
        draw(st.one_of(st.none(), st.integers(-6, 6))),
        draw(place),
        draw(st.integers(1, 3)),
    ], {}


@case("aten.select.int")
def select(draw: Draw) -> Call:
    value = tensor(draw, shape(draw, 1), ANY)
    dim = axis(draw, value)
    size = value.shape[dim]
    return [value, dim, draw(st.integers(-size, size - 1))], {}


@case("aten.flip.default")
def flip(draw: Draw) -> Call:
    value = tensor(draw, shape(draw, 1), ANY)
    return [value, dims(draw, value)], {}


@case("aten.constant_pad_nd.default")
def pad(draw: Draw) -> Call:
    value = tensor(draw, tuple(n + 2 for n in shape(draw, 1)), NUMBERS)
    count = draw(st.integers(1, value.dim()))
    return [value, [draw(st.integers(-1, 2)) for _ in range(2 * count)], draw(st.sampled_from([0, 1, 2]))], {}


@case("aten.index.Tensor")
def index(draw: Draw) -> Call:
    value = tensor(draw, (4, 3, 5), ANY)
    size = shape(draw, 1, 2)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    picks = [torch.randint(-n, n, size, generator=generator) for n in (4, 3, 5)]
    chosen = draw(st.sampled_from([(0,), (0, 1), (1,), (1, 2), (0, 1, 2)]))
    return [value, [picks[i] if i in chosen else None for i in range(max(chosen) + 1)]], {}


@case("aten.index_select.default")
def index_select(draw: Draw) -> Call:
    value = tensor(draw, (4, 3, 5), ANY)
    dim = draw(st.integers(0, 2))
    return [value, dim, torch.randint(0, value.shape[dim], (draw(st.integers(1, 6)),))], {}


@case("aten.gather.default")
def gather(draw: Draw) -> Call:
    value = tensor(draw, (4, 3, 5), ANY)
    dim = draw(st.integers(0, 2))
    size = [draw(st.integers(1, n)) for n in value.shape]
    return [value, dim, torch.randint(0, value.shape[dim], size)], {}


@case("aten.full.default")
def full(draw: Draw) -> Call:
    more = {"dtype": draw(st.sampled_from(FLOATS))} if draw(st.booleans()) else {}
    return [list(shape(draw)), draw(st.sampled_from([2, 1.5, True, -1e38]))], more


@case("aten.full_like.default")
def full_like(draw: Draw) -> Call:
    return [tensor(draw, shape(draw), NUMBERS), draw(st.sampled_from([0, 2, 1]))], {}


@case("aten.scalar_tensor.default")
def scalar_tensor(draw: Draw) -> Call:
    return [number(draw)], {"dtype": draw(st.sampled_from(FLOATS))} if draw(st.booleans()) else {}


@case("aten.arange.start_step")
def arange(draw: Draw) -> Call:
    start, step = draw(st.integers(-3, 3)), draw(st.sampled_from([1, 2, -1, 0.5]))
    end = start + draw(st.integers(1, 9)) * (1 if step > 0 else -1)
    return [start, end, step], {"dtype": torch.float32} if draw(st.booleans()) else {}


@case("aten.upsample_nearest2d.vec")
def upsample(draw: Draw) -> Call:
    value = tensor(draw, (draw(st.integers(1, 2)), 2, draw(st.integers(1, 6)), draw(st.integers(1, 6))))
    if draw(st.booleans()):
        return [
            value,
            None,
            [draw(st.sampled_from([1.0, 2.0, 3.0, 1.5, 0.5])) if n > 1 else 2.0 for n in value.shape[2:]],
        ], {}
    return [value, [draw(st.integers(1, 13)) for _ in range(2)], None], {}


@case("aten.avg_pool2d.default")
def avg_pool(draw: Draw) -> Call:
    kernel = [draw(st.integers(1, 3)) for _ in range(2)]
    padding = [draw(st.integers(0, k // 2)) for k in kernel]
    stride = draw(st.sampled_from([[], [1, 1], [2, 3]]))
    return [tensor(draw, (1, 2, 7, 6)), kernel, stride, padding, False, draw(st.booleans())], {}
