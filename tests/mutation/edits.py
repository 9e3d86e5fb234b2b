"""Edits of the files that only the format's own structure explains: outputs, dims, attributes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.artifact import Artifact
from exporter.targets.openvino.timestep import TABLE
from tests.mutation import coreml
from tests.mutation.changes import through_float16
from tests.mutation.files import (
    ONNX,
    OPENVINO,
    blobs,
    change_all,
    edit_onnx,
    edit_openvino,
    node_of,
    openvino_blob,
    part,
    rename_value,
    set_attribute,
    substitute,
)
from tests.mutation.workshop import Workshop, edit_record, part_of

if TYPE_CHECKING:
    import onnx
    import openvino

Edit = Callable[[Workshop, Path], None]


def each(
    in_onnx: Callable[[onnx.ModelProto], None],
    in_openvino: Callable[[openvino.Model], Any],
    in_coreml: Callable[[Any], None] | None = None,
) -> dict[str, Edit]:
    """An edit of the graph in each format."""
    return {
        "onnx": lambda shop, root: edit_onnx(part(root), in_onnx),
        "openvino": lambda shop, root: edit_openvino(part(root), in_openvino),
    } | in_core_ml(in_coreml)


def in_core_ml(change: Callable[[Any], None] | None) -> dict[str, Edit]:
    """An edit of a package's specification; nothing where the fault cannot be made there."""
    return {"coreml": lambda shop, root: coreml.edit(part(root), change)} if change is not None else {}


def text(
    in_onnx: Callable[[onnx.ModelProto], None],
    pattern: str,
    by: str,
    in_coreml: Callable[[Any], None] | None = None,
) -> dict[str, Edit]:
    """An edit of the graph, in OpenVINO by replacing text."""
    return {
        "onnx": lambda shop, root: edit_onnx(part(root), in_onnx),
        "openvino": lambda shop, root: substitute(part(root), {OPENVINO: (pattern, by)}),
    } | in_core_ml(in_coreml)


def alike(edit: Edit) -> dict[str, Edit]:
    return {"onnx": edit, "openvino": edit, "coreml": edit}


# Outputs


def _rename_onnx(model: onnx.ModelProto) -> None:
    rename_value(model, model.graph.output[0].name, "renamed")


def _rename_openvino(model: openvino.Model) -> None:
    model.output(0).get_tensor().set_names({"renamed"})


def _extra_onnx(model: onnx.ModelProto) -> None:
    import onnx

    name = next(n.output[0] for n in model.graph.node if n.op_type == "Add")
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))


def _extra_openvino(model: openvino.Model) -> None:
    add = next(n for n in model.get_ordered_ops() if n.get_type_name() == "Add")
    model.add_outputs(add.output(0))


def _drop_onnx(model: onnx.ModelProto) -> None:
    del model.graph.output[-1]


def _drop_openvino(model: openvino.Model) -> None:
    model.remove_result(list(model.get_results())[-1])


def _half_onnx(model: onnx.ModelProto) -> None:
    import onnx

    output = model.graph.output[0]
    rename_value(model, output.name, "exact")
    model.graph.node.append(
        onnx.helper.make_node("Cast", ["exact"], ["out_sample"], to=onnx.TensorProto.FLOAT16)
    )
    output.name, output.type.tensor_type.elem_type = "out_sample", onnx.TensorProto.FLOAT16


def _half_openvino(model: openvino.Model) -> openvino.Model:
    from openvino import opset13 as ops

    return _behind_result(model, lambda value: ops.convert(value, "f16"))


def _rounded_openvino(model: openvino.Model) -> openvino.Model:
    """OpenVINO takes a conversion there and back away, so the last 13 bits are rounded off by
    arithmetic (Veltkamp's splitting; Higham, Accuracy and Stability, 4.3)."""
    from openvino import opset13 as ops

    def rounded(value: openvino.Output) -> openvino.Node:
        large = ops.multiply(value, ops.constant(np.float32(2**13 + 1)))
        return ops.subtract(large, ops.subtract(large, value))

    return _behind_result(model, rounded)


def _behind_result(model: openvino.Model, make: Callable[[openvino.Output], openvino.Node]) -> openvino.Model:
    """The first output, under its name, through something more."""
    import openvino
    from openvino import opset13 as ops

    value = next(iter(model.get_results())).input_value(0)
    names = value.get_names()
    value.get_tensor().set_names({"exact"})
    value = make(value).output(0)
    value.get_tensor().set_names(names)
    return openvino.Model([ops.result(value)], model.get_parameters(), model.get_friendly_name())


def _rounded_onnx(model: onnx.ModelProto) -> None:
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


def _reverse_onnx(model: onnx.ModelProto) -> None:
    turned = list(model.graph.output)[::-1]
    del model.graph.output[:]
    model.graph.output.extend(turned)


def _reverse_openvino(model: openvino.Model) -> openvino.Model:
    import openvino

    return openvino.Model(list(model.get_results())[::-1], model.get_parameters(), model.get_friendly_name())


def _exchange_onnx(model: onnx.ModelProto) -> None:
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


def _exchange_openvino(model: openvino.Model) -> None:
    a, b = (model.output(i).get_tensor() for i in (0, 1))
    names = a.get_names(), b.get_names()
    a.set_names({"between"})
    b.set_names(names[0])
    a.set_names(names[1])


RENAMED = each(_rename_onnx, _rename_openvino, coreml.rename_output)
EXTRA = each(_extra_onnx, _extra_openvino, coreml.extra_output)
MISSING = each(_drop_onnx, _drop_openvino, coreml.drop_output)
HALF = each(_half_onnx, _half_openvino)
ROUNDED = each(_rounded_onnx, _rounded_openvino)
REVERSED = each(_reverse_onnx, _reverse_openvino, coreml.reverse_outputs)
EXCHANGED = each(_exchange_onnx, _exchange_openvino, coreml.exchange_outputs)


# Attributes


def _tanh_onnx(model: onnx.ModelProto) -> None:
    set_attribute(node_of(model, "Gelu"), "approximate", "tanh")


def _linear_onnx(model: onnx.ModelProto) -> None:
    node = node_of(model, "Resize")
    set_attribute(node, "mode", "linear")
    set_attribute(node, "coordinate_transformation_mode", "half_pixel")


def _pads_onnx(model: onnx.ModelProto) -> None:
    set_attribute(node_of(model, "Conv"), "pads", [0, 1, 2, 1])


def _waves_onnx(model: onnx.ModelProto) -> None:
    sine, cosine = node_of(model, "Sin"), node_of(model, "Cos")
    sine.op_type, cosine.op_type = "Cos", "Sin"


def _waves_openvino(shop: Workshop, root: Path) -> None:
    """Whole timesteps are looked up: the halves of the table are exchanged."""
    table = openvino_blob(part(root), TABLE)
    table.write(np.roll(table.read(), table.shape[1] // 2, axis=1))


TANH = text(_tanh_onnx, r'approximation_mode="ERF"', 'approximation_mode="TANH"', coreml.tanh)
LINEAR = text(
    _linear_onnx,
    r'mode="nearest" shape_calculation_mode="scales" coordinate_transformation_mode="asymmetric"',
    'mode="linear_onnx" shape_calculation_mode="scales" coordinate_transformation_mode="half_pixel"',
)
PADS = text(
    _pads_onnx, r'pads_begin="1, 1" pads_end="1, 1"', 'pads_begin="0, 1" pads_end="2, 1"', coreml.pads
)
WAVES: dict[str, Edit] = {
    "onnx": lambda shop, root: edit_onnx(part(root), _waves_onnx),
    "openvino": _waves_openvino,
} | in_core_ml(coreml.waves)


# Dims


def baked(*, declared: bool) -> dict[str, Edit]:
    """Exported for one size, the manifest claims any; `declared`: so does the file itself."""

    def edit(shop: Workshop, root: Path) -> None:
        folder = part(root)
        honest = Artifact.open(root).manifest.components[0]
        native = shop.components[folder.name].native
        shop.export(root, shop.components[folder.name], {"static": (1, native.height, native.width)})
        artifact = Artifact.open(root)
        artifact.manifest.options["static"] = None
        artifact.save()
        edit_record(root, inputs=honest.inputs, outputs=honest.outputs)
        if not declared:
            return
        dims = {tensor.name: tensor.dims for tensor in (*honest.inputs, *honest.outputs)}
        if (folder / ONNX).is_file():
            edit_onnx(folder, lambda model: _free_onnx(model, dims))
        else:
            edit_openvino(folder, lambda model: _free_openvino(model, dims))

    return {"onnx": edit, "openvino": edit}  # a Core ML package has one size, and says so


def _free_onnx(model: onnx.ModelProto, dims: dict[str, list[int | str]]) -> None:
    for value in (*model.graph.input, *model.graph.output):
        for dim, wanted in zip(value.type.tensor_type.shape.dim, dims[value.name], strict=True):
            if isinstance(wanted, str):
                dim.dim_param = wanted
    del model.graph.value_info[:]


def _free_openvino(model: openvino.Model, dims: dict[str, list[int | str]]) -> None:
    import openvino

    model.reshape(
        {
            port: openvino.PartialShape(
                [
                    -1 if isinstance(d, str) else d
                    for d in dims[next(n for n in port.get_names() if n in dims)]
                ]
            )
            for port in model.inputs
        }
    )


# Bytes


def one_byte(shop: Workshop, root: Path) -> None:
    """The lowest bit of one stored number."""
    blob = max(blobs(part(root)), key=lambda b: len(b.shape))
    with blob.file.open("r+b") as handle:
        handle.seek(blob.offset)
        byte = handle.read(1)[0]
        handle.seek(blob.offset)
        handle.write(bytes([byte ^ 1]))


def cut_short(shop: Workshop, root: Path) -> None:
    blob = blobs(part(root))[0]
    with blob.file.open("r+b") as handle:
        handle.truncate(blob.file.stat().st_size - 256)


def of_component(other: str) -> dict[str, Edit]:
    """The files of another component under this one's name."""

    def edit(shop: Workshop, root: Path) -> None:
        artifact = Artifact.open(root)
        honest = shop.honest(artifact.manifest.target)
        source = honest / part_of(Artifact.open(honest).manifest.component(other))
        folder = part(root)
        shutil.rmtree(folder)
        shutil.copytree(source, folder)

    return alike(edit)


def says_half(shop: Workshop, root: Path) -> None:
    """The manifest claims float16 for a float32 file, which would earn it a float16 limit."""
    edit_record(root, dtype="float16")


ONE_BIT, CUT, SAYS_HALF = alike(one_byte), alike(cut_short), alike(says_half)
ALL_HALF = alike(lambda shop, root: change_all(part(root), through_float16))
