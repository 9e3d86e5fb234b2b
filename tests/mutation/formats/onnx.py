"""ONNX: the graph through `onnx`, the weights by offset in the data file."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.mutation.blob import Blob
from tests.mutation.formats.base import Edit, Format, part, register
from tests.mutation.formats.common import STORED, Dims, baked

if TYPE_CHECKING:
    import onnx

ONNX = "model.onnx"
STATIC = (1, 64, 64)


def blobs(folder: Path) -> list[Blob]:
    import onnx

    result = []
    for tensor in onnx.load(folder / ONNX, load_external_data=False).graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        if where:
            dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
            result.append(Blob(folder / where["location"], int(where["offset"]), tuple(tensor.dims), dtype))
    return [blob for blob in result if blob.dtype.startswith("float")]


def edit_onnx(folder: Path, edit: Callable[[onnx.ModelProto], None]) -> None:
    """Change the graph file; the data file stays as it is."""
    import onnx

    model = onnx.load(folder / ONNX, load_external_data=False)
    edit(model)
    (folder / ONNX).write_bytes(model.SerializeToString())


def node_of(model: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    """The first node of an operator."""
    return next(node for node in model.graph.node if node.op_type == kind)


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    import onnx

    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])


def rename_value(model: onnx.ModelProto, old: str, new: str) -> None:
    """Rename a value everywhere it is made or used, graph outputs included."""
    for node in model.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new
    for value in model.graph.output:
        if value.name == old:
            value.name = new


def _rename(model: onnx.ModelProto) -> None:
    rename_value(model, model.graph.output[0].name, "renamed")


def _extra(model: onnx.ModelProto) -> None:
    import onnx

    name = next(n.output[0] for n in model.graph.node if n.op_type == "Add")
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))


def _drop(model: onnx.ModelProto) -> None:
    del model.graph.output[-1]


def _half(model: onnx.ModelProto) -> None:
    import onnx

    output = model.graph.output[0]
    rename_value(model, output.name, "exact")
    model.graph.node.append(
        onnx.helper.make_node("Cast", ["exact"], ["out_sample"], to=onnx.TensorProto.FLOAT16)
    )
    output.name, output.type.tensor_type.elem_type = "out_sample", onnx.TensorProto.FLOAT16


def _rounded(model: onnx.ModelProto) -> None:
    import onnx

    output = model.graph.output[0]
    name = output.name
    rename_value(model, name, "exact")
    output.name = name
    make = onnx.helper.make_node
    model.graph.node.extend(
        [
            make("Cast", ["exact"], ["rounded"], to=onnx.TensorProto.FLOAT16),
            make("Cast", ["rounded"], [name], to=onnx.TensorProto.FLOAT),
        ]
    )


def _reverse(model: onnx.ModelProto) -> None:
    turned = list(model.graph.output)[::-1]
    del model.graph.output[:]
    model.graph.output.extend(turned)


def _exchange(model: onnx.ModelProto) -> None:
    a, b = (value.name for value in model.graph.output)
    for old, new in ((a, "between"), (b, a), ("between", b)):
        for node in model.graph.node:
            for i, name in enumerate(node.output):
                if name == old:
                    node.output[i] = new
            for i, name in enumerate(node.input):
                if name == old:
                    node.input[i] = new
    types = [value.type.SerializeToString() for value in model.graph.output]
    for value, other in zip(model.graph.output, types[::-1], strict=True):
        value.type.ParseFromString(other)


def _tanh(model: onnx.ModelProto) -> None:
    set_attribute(node_of(model, "Gelu"), "approximate", "tanh")


def _linear(model: onnx.ModelProto) -> None:
    node = node_of(model, "Resize")
    set_attribute(node, "mode", "linear")
    set_attribute(node, "coordinate_transformation_mode", "half_pixel")


def _pads(model: onnx.ModelProto) -> None:
    set_attribute(node_of(model, "Conv"), "pads", [0, 1, 2, 1])


def _waves(model: onnx.ModelProto) -> None:
    sine, cosine = node_of(model, "Sin"), node_of(model, "Cos")
    sine.op_type, cosine.op_type = "Cos", "Sin"


def _free(folder: Path, dims: Dims) -> None:
    edit_onnx(folder, lambda model: _claim(model, dims))


def _claim(model: onnx.ModelProto, dims: Dims) -> None:
    for value in (*model.graph.input, *model.graph.output):
        for dim, wanted in zip(value.type.tensor_type.shape.dim, dims[value.name], strict=True):
            if isinstance(wanted, str):
                dim.dim_param = wanted
    del model.graph.value_info[:]


def _graph(change: Callable[[onnx.ModelProto], None]) -> Edit:
    return lambda shop, root: edit_onnx(part(root), change)


EDITS: dict[str, Edit] = STORED | {
    "output-renamed": _graph(_rename),
    "output-extra": _graph(_extra),
    "output-missing": _graph(_drop),
    "output-dtype": _graph(_half),
    "output-float16": _graph(_rounded),
    "output-order": _graph(_reverse),
    "output-exchanged": _graph(_exchange),
    "tanh-gelu": _graph(_tanh),
    "bilinear": _graph(_linear),
    "padding": _graph(_pads),
    "sin-cos": _graph(_waves),
    "baked": baked(),
    "baked-declared": baked(_free),
    "baked-picture": baked(_free),
}

register(
    Format(
        "onnx",
        "ONNX",
        "onnx",
        edits=EDITS,
        blobs=blobs,
        graph=(".onnx",),
        honest=[
            {"dtype": dtype} | static | {"attention": attention}
            for dtype, static, attention in itertools.product(
                ("float32", "float16"), ({}, {"static": STATIC}), ("fused", "opset23", "decomposed")
            )
        ],
    )
)
