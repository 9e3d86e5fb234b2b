"""The quantised weights of an ONNX file, read back from the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporter.errors import ArtifactError
from exporter.targets.base import QuantisedWeight
from exporter.targets.quantisation import unpacked

if TYPE_CHECKING:
    import onnx

Read = Callable[[str], np.ndarray]
SUFFIXES = CODES, SCALES, ZEROS = (".codes", ".scales", ".zeros")
RANGES = {"int8": (-127, 127), "uint8": (0, 255)}


def quantised(model: onnx.ModelProto, folder: Path) -> Iterator[QuantisedWeight]:
    """Every weight in the file's codes, one at a time: its values as the runtime computes them.

    Found by the names that the export gives them. Whether the graph does with codes, scales and zero points
    what is done here needs no trust: a graph that does not is off from PyTorch with these values.

    Raises:
        ArtifactError: A tensor is not in the file.
    """
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def read(name: str) -> np.ndarray:
        if name not in tensors:
            raise ArtifactError(
                f"{folder.name}: the tensor {name!r} of a quantised weight is not in the file."
            )
        try:
            return numpy_helper.to_array(tensors[name], str(folder))
        except Exception as error:  # onnx raises whatever its reader does
            raise ArtifactError(f"{folder.name}: the quantised weight {name!r} cannot be read.") from error

    packed = {
        node.input[1]: node
        for node in model.graph.node
        if node.op_type == "MatMulNBits" and node.domain == "com.microsoft"
    }
    for codes in tensors:
        if not codes.endswith(CODES):
            continue
        name = codes.removesuffix(CODES)
        zeros = f"{name}{ZEROS}" if f"{name}{ZEROS}" in tensors else None
        if codes in packed:
            yield _by_group(name, packed[codes], zeros, read)
        else:
            yield _by_row(name, zeros, read)


def _by_row(name: str, zeros: str | None, read: Read) -> QuantisedWeight:
    codes = read(f"{name}{CODES}")
    low, high = RANGES.get(str(codes.dtype), (0, 0))
    shape = (codes.shape[0], *[1] * (codes.ndim - 1))
    scale = read(f"{name}{SCALES}").astype(np.float32).reshape(shape)
    zero = read(zeros).astype(np.float32).reshape(shape) if zeros else np.float32(0)
    return QuantisedWeight(
        name=name,
        values=(codes.astype(np.float32) - zero) * scale,
        step=np.broadcast_to(np.abs(scale), codes.shape),
        edge=(codes <= low) | (codes >= high),
    )


def _by_group(name: str, node: onnx.NodeProto, zeros: str | None, read: Read) -> QuantisedWeight:
    settings = {a.name: a.i for a in node.attribute}
    rows, columns = settings["N"], settings["K"]
    codes = unpacked(read(f"{name}{CODES}"))
    groups = codes.shape[1]
    scale = read(f"{name}{SCALES}").astype(np.float32).reshape(rows, groups, 1)
    zero: np.ndarray | float = 8.0
    if zeros:
        zero = unpacked(read(zeros).reshape(rows, -1))[:, :groups, None].astype(np.float32)
    values = (codes.astype(np.float32) - zero) * scale
    step = np.broadcast_to(np.abs(scale), codes.shape)
    edge = (codes == 0) | (codes == 15)
    whole = [each.reshape(rows, -1)[:, :columns] for each in (values, step, edge)]
    return QuantisedWeight(name, *whole)
