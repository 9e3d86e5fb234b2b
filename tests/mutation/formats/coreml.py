"""Faults in a Core ML package: its specification through coremltools' protobuf, its weights by offset."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.mutation.blob import Blob
from tests.mutation.formats.base import Edit, Format, part, register
from tests.mutation.formats.common import STORED

SPEC = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
FLOATS = {10: "float16", 11: "float32"}
"""`MIL.DataType` of the tensors that faults go into."""


def read(package: Path) -> Any:
    """The specification."""
    import logging

    logging.getLogger("coremltools").setLevel(logging.ERROR)
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model()
    spec.ParseFromString((package / SPEC).read_bytes())
    return spec


def edit(package: Path, change: Callable[[Any], None]) -> None:
    """Change the specification; the weight file stays as it is."""
    spec = read(package)
    change(spec)
    (package / SPEC).write_bytes(spec.SerializeToString())


def operations(spec: Any) -> Any:
    function = spec.mlProgram.functions["main"]
    return function.block_specializations[function.opset].operations


def blobs(package: Path) -> list[Blob]:
    """Every float tensor in the weight file; the record at its offset says where the numbers begin."""
    result = []
    data = (package / WEIGHTS).read_bytes()
    for op in operations(read(package)):
        value = op.attributes["val"] if op.type == "const" else None
        if value is None or value.WhichOneof("value") != "blobFileValue":
            continue
        dtype = FLOATS.get(value.type.tensorType.dataType)
        if dtype is not None:
            shape = tuple(int(dim.constant.size) for dim in value.type.tensorType.dimensions)
            (start,) = struct.unpack_from("<Q", data, value.blobFileValue.offset + 16)
            result.append(Blob(package / WEIGHTS, start, shape, dtype))
    return result


def operation(spec: Any, kind: str) -> Any:
    """The first operation of a kind."""
    return next(op for op in operations(spec) if op.type == kind)


def constant(spec: Any, op: Any, parameter: str) -> Any:
    """The immediate value that an operation's parameter names."""
    name = op.inputs[parameter].arguments[0].name
    return (
        next(o for o in operations(spec) if o.outputs[0].name == name).attributes["val"].immediateValue.tensor
    )


def tanh(spec: Any) -> None:
    constant(spec, operation(spec, "gelu"), "mode").strings.values[0] = "TANH_APPROXIMATION"


def pads(spec: Any) -> None:
    """The last row of padding moves to the front."""
    op = operation(spec, "conv")
    constant(spec, op, "pad_type").strings.values[0] = "custom"
    constant(spec, op, "pad").ints.values[:] = [0, 2, 1, 1]


def waves(spec: Any) -> None:
    sine, cosine = operation(spec, "sin"), operation(spec, "cos")
    sine.type, cosine.type = "cos", "sin"


def rename_output(spec: Any) -> None:
    _rename(spec, spec.description.output[0].name, "renamed")


def _rename(spec: Any, old: str, new: str) -> None:
    for feature in spec.description.output:
        if feature.name == old:
            feature.name = new
    function = spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    block.outputs[:] = [new if name == old else name for name in block.outputs]
    for op in block.operations:
        for output in op.outputs:
            if output.name == old:
                output.name = new
        for argument in op.inputs.values():
            for binding in argument.arguments:
                if binding.WhichOneof("binding") == "name" and binding.name == old:
                    binding.name = new


def exchange_outputs(spec: Any) -> None:
    """Each of the two outputs under the other's name, with the shape that goes with it."""
    a, b = (feature.name for feature in spec.description.output)
    function = spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    shapes = [f.type.SerializeToString() for f in spec.description.output]
    _rename(spec, a, "between")
    _rename(spec, b, a)
    _rename(spec, "between", b)
    for feature, other in zip(spec.description.output, shapes, strict=True):
        feature.type.ParseFromString(shapes[0] if feature.name == b else other)
    assert set(block.outputs) == {a, b}


def extra_output(spec: Any) -> None:
    function = spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    name = operation(spec, "add").outputs[0].name
    block.outputs.append(name)
    spec.description.output.add().CopyFrom(spec.description.output[0])
    spec.description.output[-1].name = name


def drop_output(spec: Any) -> None:
    function = spec.mlProgram.functions["main"]
    del function.block_specializations[function.opset].outputs[-1]
    del spec.description.output[-1]


def _graph(change: Callable[[Any], None]) -> Edit:
    return lambda shop, root: edit(part(root), change)


EDITS: dict[str, Edit] = STORED | {
    "output-renamed": _graph(rename_output),
    "output-extra": _graph(extra_output),
    "output-missing": _graph(drop_output),
    "output-exchanged": _graph(exchange_outputs),
    "tanh-gelu": _graph(tanh),
    "padding": _graph(pads),
    "sin-cos": _graph(waves),
}
ONE_SIZE = "a package has one size, and says so"

register(
    Format(
        "coreml",
        "Core ML",
        "coreml",
        # By default it stores float16, which would hide small faults.
        options={"dtype": "float32", "attention": "original"},
        edits=EDITS,
        blobs=blobs,
        graph=(".mlmodel",),
        honest=[
            {"dtype": dtype, "attention": attention}
            for dtype in ("float32", "float16")
            for attention in ("original", "split_einsum", "split_einsum_v2")
        ],
        # The lookup of fixed positions is a constant there, so what it enters is the first value there is.
        folded=frozenset({"positions"}),
        excluded=dict.fromkeys(("baked", "baked-declared", "baked-picture"), ONE_SIZE)
        | {"output-order": "Core ML hands its outputs over by name, so no client sees their order"},
    )
)
