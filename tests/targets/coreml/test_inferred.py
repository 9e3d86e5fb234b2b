"""Operations with weights, masks and indices against coremltools' own evaluation, or PyTorch's operator.

`test_operations.py` holds the same ones against formulas in numpy; this file lends them a second source, over
other shapes and attributes, and sees to it that no operation which coremltools can evaluate goes without.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from exporter.targets.coreml.interpreter.machine import OPERATIONS
from tests.targets.coreml import test_operations
from tests.targets.coreml.inference import assert_same, ct, infer, ours
from tests.targets.coreml.test_operations import SEEDS, SHAPES, floats

SOME = settings(max_examples=10, deadline=None, database=None, derandomize=True)


@given(shape=SHAPES, seed=SEEDS)
@SOME
def test_choices(shape: tuple[int, ...], seed: int) -> None:
    a, b = floats(shape, seed), floats(shape, seed + 1)
    assert_same(ours("select", cond=a > b, a=a, b=b), infer("select", cond=a > b, a=a, b=b))
    assert_same(ours("identity", x=a), infer("identity", x=a))
    assert_same(ours("shape", x=a), infer("shape", x=a))


@given(shape=SHAPES, seed=SEEDS, data=st.data())
@SOME
def test_argmax(shape: tuple[int, ...], seed: int, data: Any) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    given_ = {"x": floats(shape, seed), "axis": axis, "keep_dims": data.draw(st.booleans())}
    theirs = infer("reduce_argmax", **given_)
    if theirs is None:
        theirs = np.argmax(given_["x"], axis=axis, keepdims=given_["keep_dims"])
    assert_same(ours("reduce_argmax", **given_), theirs)


@given(seed=SEEDS, rows=st.integers(1, 5), wide=st.integers(1, 6), out=st.integers(1, 5), bias=st.booleans())
@SOME
def test_linear(seed: int, rows: int, wide: int, out: int, bias: bool) -> None:
    given_ = {"x": floats((2, rows, wide), seed), "weight": floats((out, wide), seed + 1)}
    if bias:
        given_["bias"] = floats((out,), seed + 2)
    assert_same(ours("linear", **given_), infer("linear", **given_), 1e-5)


@given(
    seed=SEEDS, b=st.integers(1, 3), c=st.integers(1, 5), q=st.integers(1, 6), k=st.integers(1, 6),
    h=st.integers(1, 2),
)  # fmt: skip
@SOME
def test_einsum(seed: int, b: int, c: int, q: int, k: int, h: int) -> None:
    for equation, left, right in (
        ("bkhc,bchq->bkhq", (b, k, h, c), (b, c, h, q)),
        ("bchk,bkhq->bchq", (b, c, h, k), (b, k, h, q)),
    ):
        values = (floats(left, seed), floats(right, seed + 1))
        theirs = infer("einsum", values=values, equation=equation)
        assert_same(ours("einsum", values=values, equation=equation), theirs, 1e-5)


@given(shape=array_shapes(min_dims=2, max_dims=4, min_side=2, max_side=5), seed=SEEDS, data=st.data())
@SOME
def test_layer_norm(shape: tuple[int, ...], seed: int, data: Any) -> None:
    count = data.draw(st.integers(1, len(shape) - 1))
    axes = list(range(len(shape) - count, len(shape)))
    sizes = tuple(shape[a] for a in axes)
    given_: dict[str, Any] = {"x": floats(shape, seed), "axes": axes, "epsilon": np.float32(1e-2)}
    if data.draw(st.booleans()):
        given_ |= {"gamma": floats(sizes, seed + 1), "beta": floats(sizes, seed + 2)}
    assert_same(ours("layer_norm", **given_), infer("layer_norm", **given_), 1e-5)


@given(
    seed=SEEDS, heads=st.integers(1, 3), q=st.integers(1, 5), k=st.integers(1, 6), width=st.integers(1, 5),
    mask=st.sampled_from(["none", "added", "kept"]),
)  # fmt: skip
@SOME
def test_attention(seed: int, heads: int, q: int, k: int, width: int, mask: str) -> None:
    query, key = floats((2, heads, q, width), seed), floats((2, heads, k, width), seed + 1)
    given_ = {"query": query, "key": key, "value": floats((2, heads, k, width), seed + 2)}
    if mask == "added":
        given_["attn_mask"] = floats((q, k), seed + 3)
    elif mask == "kept":
        kept = floats((q, k), seed + 3) > 0
        kept[:, 0] = True  # a row without a key has no answer
        given_["attn_mask"] = kept
    kind = "scaled_dot_product_attention"
    assert_same(ours(kind, **given_), infer(kind, opset=ct.target.iOS18, **given_), 1e-5)


@given(shape=array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=5), seed=SEEDS, data=st.data())
@SOME
def test_parts(shape: tuple[int, ...], seed: int, data: Any) -> None:
    x = floats(shape, seed)
    begin = [data.draw(st.integers(0, size - 1)) for size in shape]
    size = [
        data.draw(st.one_of(st.just(-1), st.integers(1, n - b))) for n, b in zip(shape, begin, strict=True)
    ]
    given_ = {"x": x, "begin": begin, "size": size}
    assert_same(ours("slice_by_size", **given_), infer("slice_by_size", **given_))
    axes = sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))
    assert_same(ours("reverse", x=x, axes=axes), infer("reverse", x=x, axes=axes))
    value = np.float32(data.draw(st.integers(-3, 3)))
    assert_same(ours("fill", shape=list(shape), value=value), infer("fill", shape=list(shape), value=value))


@given(shape=array_shapes(min_dims=2, max_dims=4, min_side=2, max_side=5), seed=SEEDS, data=st.data())
@SOME
def test_lookups(shape: tuple[int, ...], seed: int, data: Any) -> None:
    x, rng = floats(shape, seed), np.random.default_rng(seed)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    places = rng.integers(0, shape[axis], (2, 3)).astype(np.int32)
    given_: dict[str, Any] = {"x": x, "indices": places, "axis": axis}
    assert_same(ours("gather", **given_), infer("gather", **given_))
    batched = rng.integers(0, shape[1], (shape[0], 3)).astype(np.int32)
    given_ = {"x": x, "indices": batched, "axis": 1, "batch_dims": 1}
    assert_same(ours("gather", **given_), infer("gather", **given_))
    along = rng.integers(0, shape[axis], shape).astype(np.int32)
    given_ = {"x": x, "indices": along, "axis": axis}
    assert_same(ours("gather_along_axis", **given_), infer("gather_along_axis", **given_))
    depth = data.draw(st.integers(1, len(shape)))
    rows = rng.integers(0, shape[:depth], (4, depth)).astype(np.int32)
    taken = torch.from_numpy(x)[tuple(torch.from_numpy(rows).long().unbind(-1))]
    assert_same(ours("gather_nd", x=x, indices=rows), taken.numpy())


@given(shape=array_shapes(min_dims=2, max_dims=4, min_side=3, max_side=5), seed=SEEDS, data=st.data())
@SOME
def test_pad(shape: tuple[int, ...], seed: int, data: Any) -> None:
    count = data.draw(st.integers(1, min(2, len(shape))))
    sizes = data.draw(st.lists(st.integers(0, 2), min_size=2 * count, max_size=2 * count))
    for mode in ("constant", "reflect", "replicate"):
        given_: dict[str, Any] = {"x": floats(shape, seed), "pad": sizes, "mode": mode}
        given_["constant_val"] = np.float32(0.5)
        theirs = infer("pad", **given_)
        if theirs is None:
            pairs = [(0, 0)] * (len(shape) - count) + [tuple(sizes[2 * i : 2 * i + 2]) for i in range(count)]
            how: Any = {"replicate": "edge"}.get(mode, mode)
            more = {"constant_values": 0.5} if mode == "constant" else {}
            theirs = np.pad(given_["x"], pairs, mode=how, **more)
        elif mode == "constant":  # coremltools fills with zeros whatever it is given
            theirs = np.where(np.isin(theirs, given_["x"]), theirs, np.float32(0.5))
        assert_same(ours("pad", **given_), theirs)


@given(seed=SEEDS, high=st.integers(1, 3), wide=st.integers(1, 3), size=st.integers(1, 5))
@SOME
def test_upsampling(seed: int, high: int, wide: int, size: int) -> None:
    x = floats((1, 2, size, size + 1), seed)
    theirs = torch.nn.Upsample(scale_factor=(high, wide), mode="nearest")(torch.from_numpy(x))
    given_ = {"x": x, "scale_factor_height": high, "scale_factor_width": wide}
    assert_same(ours("upsample_nearest_neighbor", **given_), theirs.numpy())
    fraction = {"x": x, "scale_factor_height": np.float32(1.5), "scale_factor_width": np.float32(2.5)}
    size_ = (int(size * 1.5), int((size + 1) * 2.5))
    theirs = functional.interpolate(torch.from_numpy(x), size=size_, mode="nearest")
    assert_same(ours("upsample_nearest_neighbor", **fraction), theirs.numpy())


@pytest.mark.parametrize("spatial", [1, 2, 3])
@given(
    seed=SEEDS, groups=st.sampled_from([1, 2]), stride=st.integers(1, 2), spread=st.integers(1, 2),
    bias=st.booleans(), pads=st.lists(st.integers(0, 2), min_size=6, max_size=6),
)  # fmt: skip
@SOME
def test_convolution(
    spatial: int, seed: int, groups: int, stride: int, spread: int, bias: bool, pads: list[int]
) -> None:
    """PyTorch's modules over a picture padded by numpy."""
    x = floats((2, 4, *(6, 5, 4)[:spatial]), seed)
    pads = pads[: 2 * spatial]
    kinds: Any = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    layer = kinds[spatial - 1](4, 6, 2, stride, 0, spread, groups, bias)
    padded = np.pad(x, [(0, 0), (0, 0), *(tuple(pads[2 * i : 2 * i + 2]) for i in range(spatial))])
    theirs = layer(torch.from_numpy(padded)).detach().numpy()
    given_: dict[str, Any] = {
        "x": x, "weight": layer.weight.detach().numpy(), "strides": [stride] * spatial, "pad_type": "custom",
        "pad": pads, "dilations": [spread] * spatial, "groups": groups,
    }  # fmt: skip
    if bias:
        given_["bias"] = layer.bias.detach().numpy()
    assert_same(ours("conv", **given_), theirs, 1e-5)


@given(seed=SEEDS, channels=st.integers(1, 4), size=st.integers(2, 5), affine=st.booleans())
@SOME
def test_norms(seed: int, channels: int, size: int, affine: bool) -> None:
    x = floats((3, channels, size, size), seed)
    layer = torch.nn.BatchNorm2d(channels, eps=1e-3, affine=affine).eval()
    layer.running_mean = torch.from_numpy(floats((channels,), seed + 1))
    layer.running_var = torch.from_numpy(floats((channels,), seed + 2, 0.5, 2))
    other = torch.nn.InstanceNorm2d(channels, eps=1e-3, affine=affine)
    more: dict[str, Any] = {"epsilon": np.float32(1e-3)}
    if affine:
        more |= {"gamma": floats((channels,), seed + 3), "beta": floats((channels,), seed + 4)}
        for norm in (layer, other):
            norm.weight.data, norm.bias.data = (torch.from_numpy(more[n]) for n in ("gamma", "beta"))
    with torch.no_grad():
        given_ = {"x": x, "mean": layer.running_mean.numpy(), "variance": layer.running_var.numpy()}
        assert_same(ours("batch_norm", **given_, **more), layer(torch.from_numpy(x)).numpy(), 1e-5)
        assert_same(ours("instance_norm", x=x, **more), other(torch.from_numpy(x)).numpy(), 1e-4)


@given(shape=SHAPES, seed=SEEDS)
@SOME
def test_silu(shape: tuple[int, ...], seed: int) -> None:
    x = floats(shape, seed, -9, 9)
    wide = torch.from_numpy(x).double()
    assert_same(ours("silu", x=x), (wide / (1 + torch.exp(-wide))).numpy())


def test_whatever_coremltools_can_evaluate_is_compared_with_it() -> None:
    from coremltools.converters.mil.mil import Operation
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    text = inspect.getsource(sys.modules[__name__]) + inspect.getsource(test_operations)
    tables = (*test_operations.UNARY, *test_operations.BINARY)
    evaluated = []
    for name in OPERATIONS:
        variants = SSAOpRegistry.core_ops.get(name, {})
        own = [kind for kind in variants.values() if kind.value_inference is not Operation.value_inference]
        if own and not name.startswith("constexpr"):
            evaluated.append(name)
    assert len(evaluated) > 50
    named = {
        "rsqrt",
        "inverse",
        "log",
        "logical_and",
        "logical_or",
        "logical_xor",
        "reduce_mean",
        "reduce_sum",
        "reduce_max",
        "reduce_min",
    }  # fmt: skip - in parametrised tests
    left = [
        name for name in evaluated
        if f'infer("{name}"' not in text and name not in tables and name not in named
        and name != "scaled_dot_product_attention"
    ]  # fmt: skip
    assert left == []
