"""Faults in the files of an artifact, written byte by byte or with the format's own library.

A weight is found in a data file by its values, not by its name: formats rename and transpose.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from exporter.artifact import Artifact
from tests.mutation import coreml
from tests.mutation.blob import Blob
from tests.mutation.workshop import part_of

if TYPE_CHECKING:
    import onnx
    import openvino

Change = Callable[[np.ndarray], np.ndarray]

ONNX, OPENVINO = "model.onnx", "openvino_model.xml"
IR_TYPES = {"f32": "float32", "f16": "float16"}


def part(root: Path) -> Path:
    """The folder of the only component of a copy."""
    return root / part_of(Artifact.open(root).manifest.components[0])


def blobs(folder: Path) -> list[Blob]:
    """Every float tensor in the data file of a component."""
    if folder.suffix == ".mlpackage":
        return coreml.blobs(folder)
    return _onnx_blobs(folder) if (folder / ONNX).is_file() else _openvino_blobs(folder)


def _onnx_blobs(folder: Path) -> list[Blob]:
    import onnx

    result = []
    for tensor in onnx.load(folder / ONNX, load_external_data=False).graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        if where:
            dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
            result.append(Blob(folder / where["location"], int(where["offset"]), tuple(tensor.dims), dtype))
    return [blob for blob in result if blob.dtype.startswith("float")]


def _openvino_blobs(folder: Path) -> list[Blob]:
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
    return next(b for b in _openvino_blobs(folder) if b.offset == offset)


def find(folder: Path, weight: np.ndarray) -> tuple[Blob, bool]:
    """Where a weight of the checkpoint lies, and whether transposed.

    Raises:
        LookupError: Its values are in no blob.
    """
    for blob in blobs(folder):
        if int(np.prod(blob.shape, dtype=np.int64)) != weight.size:
            continue
        stored = blob.read().reshape(-1)
        if np.array_equal(stored, weight.reshape(-1).astype(blob.dtype)):
            return blob, False
        if weight.ndim == 2 and np.array_equal(stored, weight.T.reshape(-1).astype(blob.dtype)):
            return blob, True
    raise LookupError(f"no tensor of {folder.name} holds the weight of shape {weight.shape}")


def change_weight(folder: Path, weight: np.ndarray, change: Change) -> None:
    """Overwrite one weight by `change(weight)`, in the layout and dtype in which it is stored."""
    blob, transposed = find(folder, weight)
    changed = change(weight.copy())
    if changed.shape != weight.shape:
        raise ValueError("a changed weight keeps its shape")
    laid = (changed.T if transposed else changed).reshape(blob.shape)
    with np.errstate(over="ignore"):
        blob.write(np.ascontiguousarray(laid).astype(blob.dtype))


def change_all(folder: Path, change: Change) -> None:
    """Overwrite every stored matrix and kernel."""
    for blob in blobs(folder):
        if sum(size > 1 for size in blob.shape) > 1:
            blob.write(change(blob.read()).astype(blob.dtype))


def substitute(folder: Path, patterns: dict[str, tuple[str, str]]) -> None:
    """Replace the first match of a regular expression in an IR's text.

    Raises:
        LookupError: No match.
    """
    path = folder / OPENVINO
    text = path.read_text(encoding="utf-8")
    pattern, by = patterns[OPENVINO]
    changed, count = re.subn(pattern, by, text, count=1)
    if count != 1:
        raise LookupError(f"{pattern!r} is not in {path.name}")
    path.write_text(changed, encoding="utf-8")


def edit_onnx(folder: Path, edit: Callable[[onnx.ModelProto], None]) -> None:
    """Change the graph file; the data file stays as it is."""
    import onnx

    model = onnx.load(folder / ONNX, load_external_data=False)
    edit(model)
    (folder / ONNX).write_bytes(model.SerializeToString())


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


def ports(model: openvino.Model) -> Sequence[Any]:
    """The results' nodes in order."""
    return list(model.get_results())
