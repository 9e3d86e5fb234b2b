"""OpenVINO: the IR through openvino or as text, the weights by offset in the data file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from exporter.targets.openvino.timestep import TABLE
from tests.mutation.blob import Blob
from tests.mutation.formats.base import Edit, Format, part, register
from tests.mutation.formats.common import STORED, Dims, baked

if TYPE_CHECKING:
    import openvino

    from tests.mutation.workshop import Workshop

OPENVINO = "openvino_model.xml"
IR_TYPES = {"f32": "float32", "f16": "float16"}
STATIC = (1, 64, 64)


def blobs(folder: Path) -> list[Blob]:
    data = (folder / OPENVINO).with_suffix(".bin")
    result = []
    for layer in ElementTree.parse(folder / OPENVINO).getroot().iter("layer"):
        note = layer.find("data")
        if layer.get("type") == "Const" and note is not None and note.get("element_type") in IR_TYPES:
            shape = tuple(int(n) for n in str(note.get("shape") or "").split(",") if n.strip())
            dtype = IR_TYPES[str(note.get("element_type"))]
            result.append(Blob(data, int(note.get("offset") or 0), shape, dtype))
    return result


def openvino_blob(folder: Path, name: str) -> Blob:
    """The constant of that name in an IR."""
    layers = ElementTree.parse(folder / OPENVINO).getroot().iter("layer")
    note = next(layer.find("data") for layer in layers if layer.get("name") == name)
    assert note is not None
    offset = int(note.get("offset") or 0)
    return next(b for b in blobs(folder) if b.offset == offset)


def edit_openvino(folder: Path, edit: Callable[[openvino.Model], Any]) -> None:
    """Change the IR with OpenVINO and write both files anew. `edit` may return another model."""
    import openvino

    path = folder / OPENVINO
    model = openvino.Core().read_model(path)
    model = edit(model) or model
    beside = folder / "changed.xml"
    openvino.save_model(model, beside, compress_to_fp16=False)
    del model
    beside.with_suffix(".bin").replace(path.with_suffix(".bin"))
    beside.replace(path)


def substitute(folder: Path, pattern: str, by: str) -> None:
    """Replace the first match of a regular expression in an IR's text.

    Raises:
        LookupError: No match.
    """
    path = folder / OPENVINO
    text = path.read_text(encoding="utf-8")
    changed, count = re.subn(pattern, by, text, count=1)
    if count != 1:
        raise LookupError(f"{pattern!r} is not in {path.name}")
    path.write_text(changed, encoding="utf-8")


def _rename(model: openvino.Model) -> None:
    model.output(0).get_tensor().set_names({"renamed"})


def _extra(model: openvino.Model) -> None:
    add = next(n for n in model.get_ordered_ops() if n.get_type_name() == "Add")
    model.add_outputs(add.output(0))


def _drop(model: openvino.Model) -> None:
    model.remove_result(list(model.get_results())[-1])


def _half(model: openvino.Model) -> openvino.Model:
    from openvino import opset13 as ops

    return _behind_result(model, lambda value: ops.convert(value, "f16"))


def _rounded(model: openvino.Model) -> openvino.Model:
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


def _reverse(model: openvino.Model) -> openvino.Model:
    import openvino

    return openvino.Model(list(model.get_results())[::-1], model.get_parameters(), model.get_friendly_name())


def _exchange(model: openvino.Model) -> None:
    a, b = (model.output(i).get_tensor() for i in (0, 1))
    names = a.get_names(), b.get_names()
    a.set_names({"between"})
    b.set_names(names[0])
    a.set_names(names[1])


def _waves(shop: Workshop, root: Path) -> None:
    """Whole timesteps are looked up: the halves of the table are exchanged."""
    table = openvino_blob(part(root), TABLE)
    table.write(np.roll(table.read(), table.shape[1] // 2, axis=1))


def _free(folder: Path, dims: Dims) -> None:
    edit_openvino(folder, lambda model: _claim(model, dims))


def _claim(model: openvino.Model, dims: Dims) -> None:
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


def _graph(change: Callable[[openvino.Model], Any]) -> Edit:
    return lambda shop, root: edit_openvino(part(root), change)


def _text(pattern: str, by: str) -> Edit:
    return lambda shop, root: substitute(part(root), pattern, by)


EDITS: dict[str, Edit] = STORED | {
    "output-renamed": _graph(_rename),
    "output-extra": _graph(_extra),
    "output-missing": _graph(_drop),
    "output-dtype": _graph(_half),
    "output-float16": _graph(_rounded),
    "output-order": _graph(_reverse),
    "output-exchanged": _graph(_exchange),
    "tanh-gelu": _text(r'approximation_mode="ERF"', 'approximation_mode="TANH"'),
    "bilinear": _text(
        r'mode="nearest" shape_calculation_mode="scales" coordinate_transformation_mode="asymmetric"',
        'mode="linear_onnx" shape_calculation_mode="scales" coordinate_transformation_mode="half_pixel"',
    ),
    "padding": _text(r'pads_begin="1, 1" pads_end="1, 1"', 'pads_begin="0, 1" pads_end="2, 1"'),
    "sin-cos": _waves,
    "baked": baked(),
    "baked-declared": baked(_free),
    "baked-picture": baked(_free),
}


def _forms() -> list[dict[str, Any]]:
    """As the file is, with the timestep as a fraction, and to be run in whatever arithmetic OpenVINO
    takes: then that run decides as well."""
    further = ({}, {"timestep": "float32"}, {"precision_hint": "default"})
    return [
        {"dtype": dtype} | static | more
        for dtype, static, more in itertools.product(
            ("float32", "float16"), ({}, {"static": STATIC}), further
        )
    ]


register(
    Format("openvino", "OpenVINO", "openvino", edits=EDITS, blobs=blobs, graph=(".xml",), honest=_forms())
)
