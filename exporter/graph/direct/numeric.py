"""Operators that compute.

Each function takes the emitter, the traced node, and the node's arguments with tensors replaced by what
they became. Semantics are those of torch's `aten` operators of that name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from exporter.graph.direct.emitter import Emitter, NotCovered, Operand

IN_PLACE = {"aten.masked_fill_.Scalar", "aten.add_.Tensor"}
"""Operators that change their first argument and are translated here."""
VIEWS = {
    f"aten.{name}"
    for name in (
        "alias.default", "detach.default", "view.default", "reshape.default", "flatten.using_ints",
        "unflatten.int", "permute.default", "transpose.int", "unsqueeze.default", "squeeze.dim",
        "movedim.int", "expand.default", "slice.Tensor", "select.int", "chunk.default", "unbind.int",
        "split_with_sizes.default", "to.dtype", "contiguous.default", "type_as.default",
    )
}  # fmt: skip
"""Operators whose result may be the memory of their argument."""


def unary(operator: str) -> Callable[..., Operand]:
    def translate(emitter: Emitter, node: Node, x: Operand) -> Operand:
        return emitter.emit(operator, [x])

    return translate


def binary(operator: str) -> Callable[..., Operand]:
    """Elementwise with broadcasting, both sides in torch's promoted dtype."""

    def translate(emitter: Emitter, node: Node, x: Any, y: Any, alpha: float = 1, **options: Any) -> Operand:
        if options:
            raise NotCovered(f"{node.target} with {', '.join(options)}")
        comparison = operator in ("Less", "Greater", "Equal", "LessOrEqual", "GreaterOrEqual")
        dtype = _promoted(emitter, node) if comparison else node.meta["val"].dtype
        if alpha != 1:
            raise NotCovered(f"{node.target} with alpha")
        if operator in ("Mul", "Div") and isinstance(y, int | float) and y == 1:
            same = emitter.fake(node.args[0]).dtype == dtype
            if same:
                return x
        return emitter.emit(
            operator, [_side(emitter, a, v, dtype) for a, v in zip(node.args, (x, y), strict=False)]
        )

    return translate


def taken_from(emitter: Emitter, node: Node, x: Operand, y: Any, alpha: float = 1) -> Operand:
    """`y - x`."""
    if alpha != 1:
        raise NotCovered(f"{node.target} with alpha")
    dtype = node.meta["val"].dtype
    return emitter.emit(
        "Sub", [_side(emitter, a, v, dtype) for a, v in ((node.args[1], y), (node.args[0], x))]
    )


def whole_quotient(emitter: Emitter, node: Node, x: Operand, y: Any) -> Operand:
    """Of whole numbers, rounded down: ONNX rounds towards zero, which differs where only one is negative."""
    dtype = node.meta["val"].dtype
    if dtype.is_floating_point:
        raise NotCovered(f"{node.target} of numbers with a fraction")
    sides = [_side(emitter, a, v, dtype) for a, v in zip(node.args, (x, y), strict=False)]
    zero, one = torch.tensor(0, dtype=dtype), torch.tensor(1, dtype=dtype)
    quotient = emitter.emit("Div", sides)
    rest = emitter.emit("Sub", [sides[0], emitter.emit("Mul", [quotient, sides[1]])])
    product = emitter.emit("Mul", [rest, sides[1]])
    return emitter.emit(
        "Where", [emitter.emit("Less", [product, zero]), emitter.emit("Sub", [quotient, one]), quotient]
    )


def _side(emitter: Emitter, argument: Any, value: Any, dtype: torch.dtype) -> Operand:
    if isinstance(argument, Node):
        fake = argument.meta["val"]
        if not isinstance(fake, torch.Tensor):
            return _size_side(emitter, argument, dtype)
        return emitter.cast(value, dtype, fake.dtype)
    return torch.tensor(value, dtype=dtype)


def _size_side(emitter: Emitter, argument: Node, dtype: torch.dtype) -> Operand:
    """A size as one side of arithmetic: a vector of length 1, which broadcasts beside all but scalars."""
    current = emitter.current
    if current is None or dtype != torch.int64 or current.meta["val"].dim() == 0:
        raise NotCovered("arithmetic between a size and anything but a tensor of int64")
    return emitter.size(argument)


def _promoted(emitter: Emitter, node: Node) -> torch.dtype:
    sides: list[Any] = [emitter.fake(a) if isinstance(a, Node) else a for a in node.args[:2]]
    return torch.result_type(*sides)


def add_in_place(emitter: Emitter, node: Node, x: Operand, y: Any, **options: Any) -> Operand:
    """`x += y`, where nothing else is a view of `x`: others would see the change, and here they do not."""
    changed = node.args[0]
    assert isinstance(changed, Node)
    if any(str(each.target) in VIEWS for each in (changed, *changed.users)):
        raise NotCovered("an addition in place to what has views")
    result: Operand = binary("Add")(emitter, node, x, y, **options)
    emitter.env[changed] = result
    return result


def reciprocal_root(emitter: Emitter, node: Node, x: Operand) -> Operand:
    return emitter.emit("Reciprocal", [emitter.emit("Sqrt", [x])])


def where(emitter: Emitter, node: Node, condition: Operand, x: Any, y: Any) -> Operand:
    dtype = node.meta["val"].dtype
    sides = [_side(emitter, a, v, dtype) for a, v in zip(node.args[1:], (x, y), strict=True)]
    return emitter.emit("Where", [condition, *sides])


def both(emitter: Emitter, node: Node, x: Operand, y: Operand) -> Operand:
    sides = [
        emitter.cast(v, torch.bool, emitter.fake(a).dtype) for a, v in zip(node.args, (x, y), strict=True)
    ]
    return emitter.emit("And", sides)


def any_of(emitter: Emitter, node: Node, x: Operand) -> Operand:
    """Over every element; as numbers, for not every runtime reduces truths."""
    number = emitter.cast(x, torch.int32, torch.bool)
    return emitter.cast(emitter.emit("ReduceMax", [number], {"keepdims": 0}), torch.bool, torch.int32)


def clip(emitter: Emitter, node: Node, x: Operand, low: Any = None, high: Any = None) -> Operand:
    dtype = node.meta["val"].dtype
    limits = [
        None if given is None else _side(emitter, argument, given, dtype)
        for argument, given in zip((*node.args[1:], None)[:2], (low, high), strict=True)
    ]
    for bound, operator in zip(limits, ("Max", "Min"), strict=True):  # Clip itself knows scalars only
        x = x if bound is None else emitter.emit(operator, [x, bound])
    return x


def rms_norm(
    emitter: Emitter,
    node: Node,
    x: Operand,
    shape: list[int],
    weight: Operand | None = None,
    eps: float | None = None,
) -> Operand:
    """x / sqrt(mean(x²) + eps) · weight, the first part in float32 as PyTorch has it.

    Zhang and Sennrich, Root Mean Square Layer Normalization, 2019, equation 4.
    """
    have = emitter.fake(node.args[0]).dtype
    wide = emitter.cast(x, torch.float32, have)
    axes = emitter.ints(range(-len(shape), 0))
    square = emitter.emit("ReduceMean", [emitter.emit("Mul", [wide, wide]), axes], {"keepdims": 1})
    small = torch.tensor(torch.finfo(have).eps if eps is None else eps, dtype=torch.float32)
    root = emitter.emit("Sqrt", [emitter.emit("Add", [square, small])])
    normal = emitter.cast(emitter.emit("Div", [wide, root]), have, torch.float32)
    return normal if weight is None else emitter.emit("Mul", [normal, weight])


def to_dtype(emitter: Emitter, node: Node, x: Operand, *rest: Any, **options: Any) -> Operand:
    return emitter.cast(x, node.meta["val"].dtype, emitter.fake(node.args[0]).dtype)


def silu(emitter: Emitter, node: Node, x: Operand) -> Operand:
    return emitter.emit("Mul", [x, emitter.emit("Sigmoid", [x])])


def gelu(emitter: Emitter, node: Node, x: Operand, approximate: str = "none") -> Operand:
    return emitter.emit("Gelu", [x], {"approximate": approximate})


def softmax(emitter: Emitter, node: Node, x: Operand, axis: int, dtype: Any = None) -> Operand:
    x = emitter.cast(x, node.meta["val"].dtype, emitter.fake(node.args[0]).dtype)
    return emitter.emit("Softmax", [x], {"axis": axis})


def linear(emitter: Emitter, node: Node, x: Operand, weight: Operand, bias: Operand | None = None) -> Operand:
    """x · weightᵀ + bias. The transposition is folded into the weight's recipe later."""
    if emitter.fake(node.args[0]).dim() == 2 and bias is not None:
        return emitter.emit("Gemm", [x, weight, bias], {"transB": 1})
    product = emitter.emit("MatMul", [x, emitter.emit("Transpose", [weight], {"perm": [1, 0]})])
    return product if bias is None else emitter.emit("Add", [product, bias])


def matmul(emitter: Emitter, node: Node, x: Operand, y: Operand) -> Operand:
    return emitter.emit("MatMul", [x, y])


def convolution(
    emitter: Emitter,
    node: Node,
    x: Operand,
    weight: Operand,
    bias: Operand | None = None,
    stride: Any = (1,),
    padding: Any = (0,),
    dilation: Any = (1,),
    groups: int = 1,
) -> Operand:
    """Of as many axes as the kernel has; a single number stands for all of them."""
    if isinstance(padding, str):
        raise NotCovered("convolution with padding by name")
    kernel = list(emitter.fake(node.args[1]).shape[2:])
    axes = len(kernel)
    stride, padding, dilation = (list(n) * (axes // len(n)) for n in (stride, padding, dilation))
    return emitter.emit(
        "Conv",
        [x, weight] if bias is None else [x, weight, bias],
        {
            "kernel_shape": kernel,
            "strides": stride,
            "pads": [*padding, *padding],
            "dilations": dilation,
            "group": groups,
        },
    )


def layer_norm(
    emitter: Emitter,
    node: Node,
    x: Operand,
    shape: list[int],
    weight: Operand | None = None,
    bias: Operand | None = None,
    eps: float = 1e-5,
    cudnn: bool = True,
) -> Operand:
    if weight is None:
        weight = torch.ones(shape, dtype=node.meta["val"].dtype)
    inputs = [x, weight] if bias is None else [x, weight, bias]
    return emitter.emit("LayerNormalization", inputs, {"axis": -len(shape), "epsilon": eps})


def group_norm(
    emitter: Emitter,
    node: Node,
    x: Operand,
    groups: int,
    weight: Operand | None = None,
    bias: Operand | None = None,
    eps: float = 1e-5,
    cudnn: bool = True,
) -> Operand:
    """From opset 21 one node; before, instance normalisation of the groups, then scale and shift.

    Wu and He, Group Normalization, 2018, section 3.1: mean and variance over (channels of a group, space).
    """
    fake = node.meta["val"]
    channels = fake.shape[1]
    if weight is None or bias is None or not isinstance(channels, int):
        raise NotCovered("group normalisation without scale and shift")
    if emitter.opset >= 21:
        options = {"num_groups": groups, "epsilon": eps}
        return emitter.emit("GroupNormalization", [x, weight, bias], options)
    kind = fake.dtype
    grouped = emitter.emit("Reshape", [x, emitter.ints([0, groups, -1])])
    plain = emitter.emit(
        "InstanceNormalization",
        [grouped, torch.ones(groups, dtype=kind), torch.zeros(groups, dtype=kind)],
        {"epsilon": eps},
    )
    shape = tuple(emitter.fake(node.args[0]).shape)
    target = [0, channels, *shape[2:]]
    if all(isinstance(n, int) for n in target):
        back = emitter.ints(target)
    elif len(shape) == 3:
        back = emitter.ints([0, channels, -1])
    else:
        back = emitter.emit("Shape", [x])
    normal = emitter.emit("Reshape", [plain, back])
    axes = emitter.ints(range(1, len(shape) - 1))
    scaled = emitter.emit("Mul", [normal, emitter.emit("Unsqueeze", [weight, axes])])
    return emitter.emit("Add", [scaled, emitter.emit("Unsqueeze", [bias, axes])])


def masked_fill(emitter: Emitter, node: Node, x: Operand, mask: Operand, value: Any) -> Operand:
    if not isinstance(value, int | float):
        raise NotCovered("a fill by a computed number")
    return emitter.emit("Where", [mask, torch.tensor(value, dtype=node.meta["val"].dtype), x])


def masked_fill_in_place(emitter: Emitter, node: Node, x: Operand, mask: Operand, value: Any) -> Operand:
    result = masked_fill(emitter, node, x, mask, value)
    emitter.env[node.args[0]] = result  # type: ignore[index]
    return result


def argmax(emitter: Emitter, node: Node, x: Operand, axis: int | None = None, keep: bool = False) -> Operand:
    if axis is None:
        raise NotCovered("argmax over everything")
    return emitter.emit("ArgMax", [x], {"axis": axis, "keepdims": int(keep)})


def mean(
    emitter: Emitter, node: Node, x: Operand, axes: list[int], keep: bool = False, **options: Any
) -> Operand:
    return emitter.emit("ReduceMean", [x, emitter.ints(axes)], {"keepdims": int(keep)})


def power(emitter: Emitter, node: Node, x: Operand, exponent: float) -> Operand:
    return emitter.emit("Pow", [x, torch.tensor(exponent, dtype=node.meta["val"].dtype)])


TABLE: dict[str, Callable[..., Any]] = {
    "aten.add.Tensor": binary("Add"),
    "aten.sub.Tensor": binary("Sub"),
    "aten.mul.Tensor": binary("Mul"),
    "aten.div.Tensor": binary("Div"),
    "aten.rsub.Scalar": taken_from,
    "aten.floor_divide.default": whole_quotient,
    "aten.lt.Tensor": binary("Less"),
    "aten.lt.Scalar": binary("Less"),
    "aten.gt.Tensor": binary("Greater"),
    "aten.gt.Scalar": binary("Greater"),
    "aten.le.Tensor": binary("LessOrEqual"),
    "aten.le.Scalar": binary("LessOrEqual"),
    "aten.ge.Tensor": binary("GreaterOrEqual"),
    "aten.ge.Scalar": binary("GreaterOrEqual"),
    "aten.eq.Scalar": binary("Equal"),
    "aten.eq.Tensor": binary("Equal"),
    "aten.sin.default": unary("Sin"),
    "aten.cos.default": unary("Cos"),
    "aten.exp.default": unary("Exp"),
    "aten.tanh.default": unary("Tanh"),
    "aten.sigmoid.default": unary("Sigmoid"),
    "aten.relu.default": unary("Relu"),
    "aten.neg.default": unary("Neg"),
    "aten.abs.default": unary("Abs"),
    "aten.log.default": unary("Log"),
    "aten.isinf.default": unary("IsInf"),
    "aten.rsqrt.default": reciprocal_root,
    "aten.min.other": binary("Min"),
    "aten.where.self": where,
    "aten.where.Scalar": where,
    "aten.any.default": any_of,
    "aten.clip.default": clip,
    "aten.clamp.default": clip,
    "aten.clamp.Tensor": clip,
    "aten.add_.Tensor": add_in_place,
    "aten.rms_norm.default": rms_norm,
    "aten.type_as.default": to_dtype,
    "aten.sqrt.default": unary("Sqrt"),
    "aten.bitwise_not.default": unary("Not"),
    "aten.logical_and.default": both,
    "aten.silu.default": silu,
    "aten.gelu.default": gelu,
    "aten.softmax.int": softmax,
    "aten.linear.default": linear,
    "aten.matmul.default": matmul,
    "aten.bmm.default": matmul,
    "aten.conv2d.default": convolution,
    "aten.conv3d.default": convolution,
    "aten.layer_norm.default": layer_norm,
    "aten.group_norm.default": group_norm,
    "aten.masked_fill.Scalar": masked_fill,
    "aten.masked_fill_.Scalar": masked_fill_in_place,
    "aten.argmax.default": argmax,
    "aten.mean.dim": mean,
    "aten.pow.Tensor_Scalar": power,
    "aten.to.dtype": to_dtype,
    "aten.to.dtype_layout": to_dtype,
    "aten.to.device": to_dtype,
    "aten._to_copy.default": to_dtype,
}
