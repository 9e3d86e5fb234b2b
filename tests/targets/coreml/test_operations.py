"""Every operation against coremltools' own evaluation, or against numpy where coremltools has none."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from exporter.errors import ArtifactError
from exporter.targets.coreml.interpreter.machine import OPERATIONS
from tests.targets.coreml.inference import assert_same, infer, ours, tensor

FEW = settings(max_examples=6, deadline=None, database=None, derandomize=True)
SHAPES = array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=5)
SEEDS = st.integers(0, 2**31)


def floats(shape: tuple[int, ...], seed: int, low: float = -3, high: float = 3) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


UNARY = {
    "abs": (-3, 3), "ceil": (-3, 3), "cos": (-9, 9), "erf": (-3, 3), "exp": (-3, 3), "floor": (-3, 3),
    "relu": (-3, 3), "round": (-3, 3), "sigmoid": (-9, 9), "sign": (-3, 3), "sin": (-9, 9),
    "sqrt": (0, 9), "square": (-3, 3), "tanh": (-3, 3), "softsign": (-3, 3),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(UNARY))
@given(shape=SHAPES, seed=SEEDS)
@FEW
def test_unary(kind: str, shape: tuple[int, ...], seed: int) -> None:
    x = floats(shape, seed, *UNARY[kind])
    assert_same(ours(kind, x=x), infer(kind, x=x))


@given(shape=SHAPES, seed=SEEDS)
@FEW
def test_silu(shape: tuple[int, ...], seed: int) -> None:
    x = floats(shape, seed)
    assert_same(ours("silu", x=x), x.astype(np.float64) / (1 + np.exp(-x.astype(np.float64))))


BINARY = (
    "add", "sub", "mul", "real_div", "maximum", "minimum", "pow", "equal", "not_equal", "greater",
    "greater_equal", "less", "less_equal", "floor_div", "mod",
)  # fmt: skip


@pytest.mark.parametrize("kind", BINARY)
@given(shape=SHAPES, seed=SEEDS, drop=st.integers(0, 3), one=st.booleans())
@FEW
def test_binary_with_broadcasting(kind: str, shape: tuple[int, ...], seed: int, drop: int, one: bool) -> None:
    x = np.round(floats(shape, seed, 0.5, 3), 1)
    other = shape[min(drop, len(shape) - 1) :]
    other = (1, *other[1:]) if one else other
    y = np.round(floats(other, seed + 1, 0.5, 3), 1)
    assert_same(ours(kind, x=x, y=y), infer(kind, x=x, y=y), 1e-5 if kind in ("mod", "pow") else 2e-6)


@pytest.mark.parametrize("kind", ["logical_and", "logical_or", "logical_xor"])
@given(shape=SHAPES, seed=SEEDS)
@FEW
def test_logic(kind: str, shape: tuple[int, ...], seed: int) -> None:
    x, y = floats(shape, seed) > 0, floats(shape, seed + 1) > 0
    assert_same(ours(kind, x=x, y=y), infer(kind, x=x, y=y))


@pytest.mark.parametrize("mode", ["EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"])
@given(shape=SHAPES, seed=SEEDS)
@FEW
def test_gelu(mode: str, shape: tuple[int, ...], seed: int) -> None:
    x = floats(shape, seed)
    assert_same(ours("gelu", x=x, mode=mode), infer("gelu", x=x, mode=mode))


@pytest.mark.parametrize("kind,default", [("rsqrt", 1e-12), ("inverse", 1e-4), ("log", 1e-45)])
@given(shape=SHAPES, seed=SEEDS, given_epsilon=st.booleans())
@FEW
def test_with_epsilon(
    kind: str, default: float, shape: tuple[int, ...], seed: int, given_epsilon: bool
) -> None:
    x = floats(shape, seed, 0.1, 4)
    more = {"epsilon": np.float32(0.05)} if given_epsilon else {}
    truth = infer(kind, x=x, **more)
    if truth is None:  # value inference was dropped for some
        epsilon = float(more.get("epsilon", default))
        wide = x.astype(np.float64) + epsilon
        truth = {"rsqrt": wide**-0.5, "inverse": 1 / wide, "log": np.log(wide)}[kind]
    assert_same(ours(kind, x=x, **more), truth)


@given(shape=SHAPES, seed=SEEDS)
@FEW
def test_select_clip_and_cast(shape: tuple[int, ...], seed: int) -> None:
    a, b = floats(shape, seed), floats(shape, seed + 1)
    assert_same(ours("select", cond=a > b, a=a, b=b), np.where(a > b, a, b))
    assert_same(ours("clip", x=a, alpha=-1.0, beta=1.5), infer("clip", x=a, alpha=-1.0, beta=1.5))
    for dtype in ("int32", "fp16", "bool", "fp32"):
        assert_same(ours("cast", x=a, dtype=dtype), infer("cast", x=a, dtype=dtype))


@given(shape=SHAPES, seed=SEEDS, data=st.data())
@FEW
def test_reshape_transpose_and_dims(shape: tuple[int, ...], seed: int, data: Any) -> None:
    x = floats(shape, seed)
    perm = data.draw(st.permutations(range(len(shape))))
    assert_same(ours("transpose", x=x, perm=perm), infer("transpose", x=x, perm=list(perm)))
    flat = [-1, shape[-1]]
    assert_same(ours("reshape", x=x, shape=flat), infer("reshape", x=x, shape=flat))
    axes = sorted(data.draw(st.sets(st.integers(0, len(shape)), min_size=1, max_size=1)))
    wide = infer("expand_dims", x=x, axes=axes)
    assert_same(ours("expand_dims", x=x, axes=axes), wide)
    assert_same(ours("squeeze", x=wide, axes=axes), infer("squeeze", x=wide, axes=axes))


@given(shape=SHAPES, seed=SEEDS, data=st.data())
@FEW
def test_concat_stack_and_split(shape: tuple[int, ...], seed: int, data: Any) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    values = [floats(shape, seed), floats(shape, seed + 1)]
    joined = infer("concat", values=values, axis=axis)
    assert_same(ours("concat", values=tuple(values), axis=axis), joined)
    assert_same(ours("stack", values=tuple(values), axis=axis), infer("stack", values=values, axis=axis))
    assert_same(
        ours("split", x=joined, num_splits=2, axis=axis), infer("split", x=joined, num_splits=2, axis=axis)
    )
    if shape[axis] > 1:
        sizes = [1, joined.shape[axis] - 1]
        assert_same(
            ours("split", x=joined, split_sizes=sizes, axis=axis),
            infer("split", x=joined, split_sizes=sizes, axis=axis),
        )


def test_interleaving() -> None:
    """The example of coremltools' documentation; its own evaluation leaves the flag out."""
    left, right = np.array([[1, 2], [3, 4], [5, 6]]), np.array([[7, 8], [9, 10], [11, 12]])
    expected = np.array([[1, 2], [7, 8], [3, 4], [9, 10], [5, 6], [11, 12]])
    assert_same(ours("concat", values=(left, right), axis=0, interleave=True), expected)


@given(shape=array_shapes(min_dims=1, max_dims=4, min_side=2, max_side=6), seed=SEEDS, data=st.data())
@settings(FEW, max_examples=25)
def test_slice_by_index(shape: tuple[int, ...], seed: int, data: Any) -> None:
    x, rank = floats(shape, seed), len(shape)
    begin, end, stride = [], [], []
    for size in shape:
        first = data.draw(st.integers(0, size - 1))
        begin.append(first)
        end.append(data.draw(st.integers(first + 1, size)))
        stride.append(data.draw(st.integers(1, 2)))
    masks = {
        name: [data.draw(st.booleans()) for _ in shape] for name in ("begin_mask", "end_mask", "squeeze_mask")
    }
    if all(masks["squeeze_mask"]):
        masks["squeeze_mask"] = [False] * rank
    given_ = {"x": x, "begin": begin, "end": end, "stride": stride} | masks
    assert_same(ours("slice_by_index", **given_), infer("slice_by_index", **given_))


@given(seed=SEEDS, size=st.integers(2, 7), step=st.integers(-3, -1))
@FEW
def test_slice_backwards(seed: int, size: int, step: int) -> None:
    x = floats((size, 3), seed)
    given_ = {
        "x": x, "begin": [size - 1, 0], "end": [0, 3], "stride": [step, 1], "end_mask": [True, False],
    }  # fmt: skip
    assert_same(ours("slice_by_index", **given_), x[size - 1 :: step])


@given(shape=array_shapes(min_dims=2, max_dims=4, min_side=2, max_side=5), seed=SEEDS, data=st.data())
@FEW
def test_gathers(shape: tuple[int, ...], seed: int, data: Any) -> None:
    x = floats(shape, seed)
    axis = data.draw(st.integers(0, len(shape) - 1))
    places = np.random.default_rng(seed).integers(-shape[axis], shape[axis], (2, 3)).astype(np.int32)
    assert_same(ours("gather", x=x, indices=places, axis=axis), np.take(x, places, axis))
    rows = np.random.default_rng(seed).integers(0, [shape[0], shape[1]], (4, 2)).astype(np.int32)
    assert_same(ours("gather_nd", x=x, indices=rows), x[rows[:, 0], rows[:, 1]])
    batched = np.random.default_rng(seed).integers(0, shape[1], (shape[0], 3)).astype(np.int32)
    expected = np.stack([np.take(x[i], batched[i], 0) for i in range(shape[0])])
    assert_same(ours("gather", x=x, indices=batched, axis=1, batch_dims=1), expected)
    assert_same(ours("gather_nd", x=x, indices=batched[..., None], batch_dims=1), expected)
    same = np.argsort(x, axis=axis).astype(np.int32)
    assert_same(ours("gather_along_axis", x=x, indices=same, axis=axis), np.take_along_axis(x, same, axis))


@pytest.mark.parametrize("place", [5, -6])
def test_an_index_outside_is_an_error(place: int) -> None:
    x, indices = tensor(np.zeros((5, 2), np.float32)), tensor(np.array([0, place]))
    with pytest.raises(ArtifactError, match="outside 5 entries"):
        OPERATIONS["gather"](x=x, indices=indices, axis=0)
    with pytest.raises(ArtifactError, match="outside 5 entries"):
        OPERATIONS["gather_nd"](x=x, indices=indices[:, None])


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate"])
@given(seed=SEEDS, sizes=st.lists(st.integers(0, 2), min_size=4, max_size=4))
@FEW
def test_pad(mode: str, seed: int, sizes: list[int]) -> None:
    x = floats((2, 3, 4, 5), seed)
    widths = [(0, 0), (0, 0), (sizes[0], sizes[1]), (sizes[2], sizes[3])]
    more = {"constant_values": 0.5} if mode == "constant" else {}
    expected = np.pad(x, widths, mode="edge" if mode == "replicate" else mode, **more)  # type: ignore[call-overload]
    full = [size for pair in widths for size in pair]
    for pads in (sizes, full):
        assert_same(ours("pad", x=x, pad=pads, mode=mode, constant_val=0.5), expected)


@given(seed=SEEDS, reps=st.lists(st.integers(1, 3), min_size=3, max_size=3))
@FEW
def test_tile_reverse_and_upsample(seed: int, reps: list[int]) -> None:
    x = floats((2, 3, 4), seed)
    assert_same(ours("tile", x=x, reps=reps), infer("tile", x=x, reps=reps))
    assert_same(ours("reverse", x=x, axes=[0, 2]), x[::-1, :, ::-1])
    larger = np.repeat(np.repeat(x[None], reps[0], -2), reps[1], -1)
    assert_same(
        ours("upsample_nearest_neighbor", x=x[None], scale_factor_height=reps[0], scale_factor_width=reps[1]),
        larger,
    )
    assert_same(ours("shape", x=x), np.array(x.shape))
    assert_same(ours("fill", shape=[2, 3], value=1.5), np.full((2, 3), 1.5, np.float32))
    assert_same(ours("slice_by_size", x=x, begin=[0, 1, 1], size=[1, -1, 2]), x[:1, 1:, 1:3])


@pytest.mark.parametrize("kind", ["reduce_mean", "reduce_sum", "reduce_max", "reduce_min"])
@given(shape=SHAPES, seed=SEEDS, keep=st.booleans(), data=st.data())
@FEW
def test_reductions(kind: str, shape: tuple[int, ...], seed: int, keep: bool, data: Any) -> None:
    x = floats(shape, seed)
    axes = sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))
    given_ = {"x": x, "axes": axes, "keep_dims": keep}
    assert_same(ours(kind, **given_), infer(kind, **given_), 1e-5)


@given(shape=SHAPES, seed=SEEDS, keep=st.booleans(), data=st.data())
@FEW
def test_argmax_takes_the_first_of_equals(shape: tuple[int, ...], seed: int, keep: bool, data: Any) -> None:
    x = np.round(floats(shape, seed))  # many equal numbers
    axis = data.draw(st.integers(0, len(shape) - 1))
    expected = np.argmax(x, axis=axis, keepdims=keep)
    assert_same(ours("reduce_argmax", x=x, axis=axis, keep_dims=keep), expected)


@given(
    seed=SEEDS,
    m=st.integers(1, 4),
    k=st.integers(1, 4),
    n=st.integers(1, 4),
    a=st.booleans(),
    b=st.booleans(),
)
@FEW
def test_products(seed: int, m: int, k: int, n: int, a: bool, b: bool) -> None:
    x = floats((2, k, m) if a else (2, m, k), seed)
    y = floats((n, k) if b else (k, n), seed + 1)
    given_ = {"x": x, "y": y, "transpose_x": a, "transpose_y": b}
    assert_same(ours("matmul", **given_), infer("matmul", **given_), 1e-5)
    weight, bias = floats((n, k), seed + 2), floats((n,), seed + 3)
    wide = floats((3, k), seed)
    assert_same(ours("linear", x=wide, weight=weight, bias=bias), wide @ weight.T + bias, 1e-5)
    for equation in ("bchq,bkhc->bkhq", "bkhq,bchk->bchq"):
        left, right = (2, k, 1, m), (2, n, 1, k)
        values = (floats(left, seed), floats(right, seed + 1))
        expected = np.einsum(equation, *(v.astype(np.float64) for v in values))
        assert_same(ours("einsum", values=values, equation=equation), expected, 1e-5)


@given(shape=SHAPES, seed=SEEDS, data=st.data())
@FEW
def test_softmax(shape: tuple[int, ...], seed: int, data: Any) -> None:
    x = floats(shape, seed, -9, 9)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    assert_same(ours("softmax", x=x, axis=axis), infer("softmax", x=x, axis=axis))


@given(shape=array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=6), seed=SEEDS, data=st.data())
@FEW
def test_layer_norm(shape: tuple[int, ...], seed: int, data: Any) -> None:
    x = floats(shape, seed)
    axes = data.draw(st.sampled_from([[-1], [1, 2], [1]]))
    size = [shape[a] for a in axes]
    gamma, beta = floats(tuple(size), seed + 1), floats(tuple(size), seed + 2)
    wide = x.astype(np.float64)
    spread = tuple(axes)
    normal = (wide - wide.mean(spread, keepdims=True)) / np.sqrt(wide.var(spread, keepdims=True) + 1e-3)
    full = [shape[i] if i in [a % 3 for a in axes] else 1 for i in range(3)]
    expected = normal * gamma.reshape(full) + beta.reshape(full)
    mine = ours("layer_norm", x=x, axes=axes, gamma=gamma, beta=beta, epsilon=np.float32(1e-3))
    assert_same(mine, expected, 1e-5)


@given(seed=SEEDS, size=st.integers(2, 5))
@FEW
def test_batch_and_instance_norm(seed: int, size: int) -> None:
    x = floats((2, 3, size, size), seed)
    mean, variance = floats((3,), seed + 1), floats((3,), seed + 2, 0.5, 2)
    gamma, beta = floats((3,), seed + 3), floats((3,), seed + 4)

    def row(v: np.ndarray) -> np.ndarray:
        return v.reshape(1, 3, 1, 1).astype(np.float64)

    expected = (x - row(mean)) / np.sqrt(row(variance) + 1e-5) * row(gamma) + row(beta)
    mine = ours("batch_norm", x=x, mean=mean, variance=variance, gamma=gamma, beta=beta)
    assert_same(mine, expected, 1e-5)
    wide = x.astype(np.float64)
    centred = wide - wide.mean((2, 3), keepdims=True)
    expected = centred / np.sqrt(wide.var((2, 3), keepdims=True) + 1e-5) * row(gamma) + row(beta)
    assert_same(ours("instance_norm", x=x, gamma=gamma, beta=beta), expected, 1e-5)


@given(
    seed=SEEDS, kind=st.sampled_from(["valid", "same", "same_lower", "custom"]), stride=st.integers(1, 2),
    spread=st.integers(1, 2), groups=st.sampled_from([1, 2]), reach=st.integers(1, 3),
)  # fmt: skip
@settings(FEW, max_examples=25)
def test_conv(seed: int, kind: str, stride: int, spread: int, groups: int, reach: int) -> None:
    """Against a convolution written as sums over shifted pictures, in float64."""
    x = floats((2, 4, 7, 6), seed)
    weight, bias = floats((6, 4 // groups, reach, reach), seed + 1), floats((6,), seed + 2)
    pads = [1, 0, 2, 1] if kind == "custom" else [0, 0, 0, 0]
    if kind.startswith("same"):
        pads = []
        for size in x.shape[2:]:
            total = max((math.ceil(size / stride) - 1) * stride + (reach - 1) * spread + 1 - size, 0)
            halves = (total // 2, total - total // 2)
            pads += halves if kind == "same" else reversed(halves)
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), (pads[0], pads[1]), (pads[2], pads[3])])
    high, wide = (
        (padded.shape[a] - (reach - 1) * spread - 1) // stride + 1 for a in (2, 3)
    )  # fmt: skip
    expected = np.zeros((2, 6, high, wide))
    for out in range(6):
        first = out // (6 // groups) * (4 // groups)
        for i in range(reach):
            for j in range(reach):
                part = padded[:, first : first + 4 // groups, i * spread :, j * spread :]
                part = part[:, :, : (high - 1) * stride + 1 : stride, : (wide - 1) * stride + 1 : stride]
                expected[:, out] += (part * weight[out, :, i, j][None, :, None, None]).sum(1)
    expected += bias.reshape(1, 6, 1, 1)
    mine = ours(
        "conv", x=x, weight=weight, bias=bias, strides=[stride] * 2, pad_type=kind,
        pad=[1, 0, 2, 1], dilations=[spread] * 2, groups=groups,
    )  # fmt: skip
    assert_same(mine, expected, 1e-5)


@given(seed=SEEDS, tokens=st.integers(1, 5), masked=st.booleans())
@FEW
def test_attention(seed: int, tokens: int, masked: bool) -> None:
    query, key, value = (floats((2, 3, n, 4), seed + i) for i, n in enumerate((tokens, 6, 6)))
    more = {"attn_mask": floats((tokens, 6), seed + 9)} if masked else {}
    scores = query.astype(np.float64) @ key.transpose(0, 1, 3, 2) / 2 + more.get("attn_mask", 0)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True) @ value
    assert_same(
        ours("scaled_dot_product_attention", query=query, key=key, value=value, **more), expected, 1e-5
    )


@given(shape=SHAPES, seed=SEEDS)
@FEW
def test_the_rest(shape: tuple[int, ...], seed: int) -> None:
    x = floats(shape, seed)
    assert_same(ours("identity", x=x), x)
    assert_same(ours("leaky_relu", x=x, alpha=0.1), infer("leaky_relu", x=x, alpha=0.1))
    assert_same(ours("logical_not", x=x > 0), infer("logical_not", x=x > 0))


def test_every_operation_is_in_a_test() -> None:
    import inspect as source
    import sys

    from tests.targets.coreml import test_compressed

    text = source.getsource(sys.modules[__name__]) + source.getsource(test_compressed)
    assert [name for name in OPERATIONS if f'"{name}"' not in text and name not in UNARY] == []
