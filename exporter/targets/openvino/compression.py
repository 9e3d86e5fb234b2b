"""Weight-only quantisation of an OpenVINO model, and the quantised weights read back from a file.

The operators around a quantised weight are those that nncf writes and every plugin knows:
constant → Convert → (Subtract the zero point) → Multiply by the scale → (Reshape joins groups) → Convert.
Codes are made from the checkpoint one tensor at a time and go through a file that is then mapped; nncf itself
would hold those of the whole model in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.targets import quantisation
from exporter.targets.base import QuantisedWeight
from exporter.targets.openvino.options import OpenVinoOptions
from exporter.targets.quantisation import How, Kind, packed, unpacked

if TYPE_CHECKING:
    import openvino

    from exporter.architectures.base import Component
    from exporter.checkpoints import StoredTensor
    from exporter.targets.openvino.held_back import Held

RANGES = {"u8": (0, 255), "i8": (-127, 127), "u4": (0, 15), "i4": (-8, 7)}
CODES = ".codes"
LEAST_HALF = 2.0**-20
"""Below this a float16 scale is coarser by up to 6 %: such a weight has float32 scales."""
BITS = {"u8": 8, "i8": 8, "u4": 4, "i4": 4, "f32": 32, "f16": 16, "bf16": 16}


def planned(
    held: Sequence[Held], component: Component, options: OpenVinoOptions, rounded: Collection[str] = ()
) -> dict[str, How]:
    """How to quantise each weight that can be (matrices, convolutions and embeddings), by its stored name.

    Args:
        rounded: Weights that are multiplied with rounded activations: these have half of the codes.
    """
    stored = {tensor.name: tensor for tensor in component.weights.values()}
    candidates: dict[str, Kind] = {}
    for each in held:
        kind = _kind(each.stand_in)
        shape = tuple(each.stand_in.get_output_shape(0))
        if each.name in stored and kind is not None and shape == stored[each.name].shape:
            candidates[each.name] = kind
    chosen = quantisation.choose(component, candidates, options)
    return {name: replace(how, halved=True) if name in rounded else how for name, how in chosen.items()}


def compress(
    model: openvino.Model,
    held: Sequence[Held],
    component: Component,
    chosen: Mapping[str, How],
    scratch: Path,
) -> list[openvino.Tensor]:
    """Put codes, scales and zero points where the stand-ins of these weights are.

    Args:
        model: Changed in place; afterwards the codes lie in a file until it is saved.
        chosen: By stored name.
        scratch: Folder of that file. One tensor is in memory at a time.

    Returns:
        What the model's constants point into without owning it: keep it until the model is saved or dropped.
    """
    if not chosen:
        return []
    stored = {tensor.name: tensor for tensor in component.weights.values()}
    stand_ins = {each.name: each.stand_in for each in held}
    path = scratch / "codes.bin"
    places: dict[str, tuple[np.ndarray, np.ndarray | None, int]] = {}
    with path.open("wb") as file:
        for name, how in chosen.items():
            codes, scales, zeros = _quantised(stored[name], how)
            places[name] = (scales, None if how.symmetric else zeros, file.tell())
            file.write(_bytes(codes, how).tobytes())
    tensors: list[openvino.Tensor] = []
    data = np.memmap(path, dtype=np.uint8, mode="r")
    for name, (scales, shifts, start) in places.items():
        node = stand_ins[name]
        tensors += _replace(node, stored[name].shape, chosen[name], data[start:], scales, shifts)
        model.remove_parameter(node)
    model.validate_nodes_and_infer_types()
    return tensors


def _kind(node: openvino.Node) -> Kind | None:
    """What a weight is used as; None where it is no candidate."""
    if len(node.get_output_shape(0)) < 2:
        return None
    uses = [(port.get_node(), port.get_index()) for port in node.output(0).get_target_inputs()]
    kinds = {(user.get_type_name(), index) for user, index in uses}
    if kinds == {("Convolution", 1)}:
        return "convolution"
    if kinds == {("Gather", 0)}:
        axes = [user.input_value(2).get_node() for user, _ in uses]
        by_row = all(axis.get_type_name() == "Constant" and axis.get_data() == 0 for axis in axes)
        return "embedding" if by_row else None
    if kinds == {("MatMul", 1)} and all(user.get_attributes()["transpose_b"] for user, _ in uses):
        return "matrix"
    return None


def _quantised(tensor: StoredTensor, how: How) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = quantisation.quantised_parts(tensor, how, "float16")
    if float(np.abs(found[1]).min()) < LEAST_HALF:
        return quantisation.quantised_parts(tensor, how, "float32")
    return found


def _bytes(codes: np.ndarray, how: How) -> np.ndarray:
    """Codes as OpenVINO stores them: four-bit symmetric ones in two's complement, without an offset."""
    if how.bits == 8:
        return codes
    return packed(codes ^ 8 if how.symmetric else codes)


def _replace(
    node: openvino.Node,
    shape: tuple[int, ...],
    how: How,
    data: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray | None,
) -> list[openvino.Tensor]:
    """Put the quantised weight in the place of a node; returns the tensors that must be kept."""
    import openvino
    from openvino import opset13 as ops

    name = node.get_friendly_name()
    rows, groups = scales.shape
    inner = list(shape) if not how.group else [rows, groups, how.group]
    beside = [rows, *[1] * (len(inner) - 1)] if not how.group else [rows, groups, 1]
    kind = getattr(openvino.Type, f"{'i' if how.symmetric else 'u'}{how.bits}")
    arithmetic = "f16" if scales.dtype == np.float16 else "f32"

    def constant(values: np.ndarray, size: list[int], part: str) -> tuple[openvino.Tensor, openvino.Node]:
        tensor = openvino.Tensor(values, openvino.Shape(size), kind)
        made = ops.constant(tensor, shared_memory=True)
        made.set_friendly_name(f"{name}.{part}")
        return tensor, ops.convert(made, arithmetic, name=f"{name}.{part}/Convert")

    count = int(np.prod(inner)) * how.bits // 8
    words = data[:count]
    if how.bits == 8:
        words = words.view(np.int8 if how.symmetric else np.uint8).reshape(inner)
    tensor, value = constant(words, inner, "codes")
    held = [tensor]
    if zeros is not None:
        packed_zeros = packed(zeros.reshape(1, -1)).reshape(-1) if how.bits == 4 else zeros.reshape(beside)
        tensor, shift = constant(np.ascontiguousarray(packed_zeros), beside, "zeros")
        held.append(tensor)
        value = ops.subtract(value, shift, name=f"{name}/Subtract")
    factor = ops.constant(np.ascontiguousarray(scales.reshape(beside)), name=f"{name}.scales")
    value = ops.multiply(value, factor, name=f"{name}/Multiply")
    if how.group:
        whole = ops.constant(np.array(shape, np.int64), name=f"{name}/Shape")
        value = ops.reshape(value, whole, False, name=f"{name}/Reshape")
    if arithmetic != "f32":
        value = ops.convert(value, "f32", name=f"{name}/Convert")
    port = node.output(0)
    names = port.get_names()
    port.set_names(set())
    value.output(0).set_names(names)
    for user in list(port.get_target_inputs()):
        user.replace_source_output(value.output(0))
    return held


def described(model: openvino.Model, chosen: Mapping[str, How], options: OpenVinoOptions) -> dict[str, Any]:
    """What was quantised, for the manifest: of the file as it was written."""
    stored = []
    for node in model.get_ops():
        if node.get_type_name() == "Constant" and kind_of(node) in BITS:
            kind = kind_of(node)
            stored.append((kind, -(-int(np.prod(node.get_output_shape(0))) * BITS[kind] // 8)))
    return quantisation.described(chosen, options, stored)


def quantised(model: openvino.Model) -> Iterator[QuantisedWeight]:
    """Every quantised weight of a model, one at a time, as OpenVINO's CPU plugin computes it under `f32`.

    The file says `(code - zero point) * scale` in float16. The plugin computes that in float32, where the
    product of an integer of 9 bits and a float16 is exact; so do we.
    """
    for node in code_constants(model):
        codes = numbers(node)
        zero, scale = _zero_and_scale(node)
        low, high = RANGES[kind_of(node)]
        shape = _whole_shape(node, codes.shape)
        yield QuantisedWeight(
            name=node.get_friendly_name().removesuffix(CODES),
            values=((codes - zero) * scale).reshape(shape),
            step=np.broadcast_to(np.abs(scale), codes.shape).reshape(shape),
            edge=((codes <= low) | (codes >= high)).reshape(shape),
        )


def code_constants(model: openvino.Model) -> Iterator[openvino.Node]:
    """The constants of the pattern: integers that are converted, perhaps shifted, and scaled."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or kind_of(node) not in RANGES:
            continue
        user = _only_user(node)
        if user is not None and user.get_type_name() == "Convert" and _scaling(user) is not None:
            yield node


def kind_of(node: openvino.Node) -> str:
    """`u8`, `i4` … of a node's output."""
    return str(node.output(0).get_element_type().get_type_name())


def numbers(node: openvino.Node) -> np.ndarray:
    """The numbers of an integer constant as float32, in its shape."""
    data, kind = node.get_data(), kind_of(node)
    shape = tuple(node.get_output_shape(0))
    if kind in ("u4", "i4"):
        data = unpacked(data.reshape(-1).view(np.uint8))[: int(np.prod(shape))].astype(np.int8)
        data = np.where(data > 7, data - 16, data) if kind == "i4" else data
    return data.reshape(shape).astype(np.float32)


def _only_user(node: openvino.Node) -> openvino.Node | None:
    users = list(node.output(0).get_target_inputs())
    return users[0].get_node() if len(users) == 1 else None


def _scaling(convert: openvino.Node) -> openvino.Node | None:
    """The multiplication by the scale behind a conversion of codes."""
    user = _only_user(convert)
    # A converted zero point is a second operand: only the first one holds codes.
    if user is None or user.input_value(0).get_node().get_friendly_name() != convert.get_friendly_name():
        return None
    if user.get_type_name() == "Subtract":
        user = _only_user(user)
    return user if user is not None and user.get_type_name() == "Multiply" else None


def _zero_and_scale(codes: openvino.Node) -> tuple[np.ndarray | float, np.ndarray]:
    convert = _only_user(codes)
    assert convert is not None
    multiply, shift = _scaling(convert), _only_user(convert)
    assert multiply is not None and shift is not None
    zero = numbers(_source(shift)) if shift.get_type_name() == "Subtract" else 0.0
    return zero, _source(multiply).get_data().astype(np.float32)


def _source(operation: openvino.Node) -> openvino.Node:
    """The constant that is an operation's second operand."""
    node = operation.input_value(1).get_node()
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return node


def _whole_shape(codes: openvino.Node, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape behind the reshape that joins the groups of a row, where there are groups."""
    convert = _only_user(codes)
    assert convert is not None
    user = _scaling(convert)
    user = _only_user(user) if user is not None else None
    if user is not None and user.get_type_name() == "Reshape":
        return tuple(user.get_output_shape(0))
    return shape
