"""Arguments for operators that move numbers, make them out of sizes, or resample pictures."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from tests.targets.stablehlo.operators.drawing import (
    ANY,
    FLOATS,
    NUMBERS,
    Call,
    Draw,
    axis,
    broadcast,
    case,
    dims,
    number,
    shape,
    tensor,
)


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
    value, ceiling = tensor(draw, (1, 2, 7, 6)), draw(st.booleans())
    return [value, kernel, stride, padding, ceiling, draw(st.booleans())], {}
