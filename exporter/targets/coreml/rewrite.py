"""Writes a package anew from a specification: its weight file, and constants in MIL's protobuf.

The converter's passes run once, and what they made is what is proven; compressing weights and splitting a
program change the saved specification itself, so that nothing is optimised a second time and every value
keeps its name.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from exporter.targets.coreml.interpreter.blob import (
    BITS,
    DTYPES,
    HEADER,
    RECORD,
    RECORD_BYTES,
    SENTINEL,
    VERSION,
    BlobFile,
)
from exporter.targets.coreml.interpreter.values import NAMES, type_of
from exporter.targets.coreml.package import MODEL_PATH, Package, weight_file

WEIGHTS = "weights/weight.bin"
SMALL = 10
"""Constants of fewer numbers stand in the specification itself, as coremltools has it."""
CODES = {name: code for code, name in DTYPES.items()}
TYPES = {name: number for number, name in NAMES.items()}


class BlobWriter:
    """Writes blob storage version 2 (see `interpreter.blob`), a tensor at a time.

    Args:
        file: Open for writing at its start.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._count, self._end = file, 0, RECORD_BYTES
        file.write(bytes(RECORD_BYTES))

    def write(self, raw: Any, dtype: str, count: int) -> int:
        """Append one tensor.

        Args:
            raw: Its bytes, packed where numbers have fewer than eight bits.
            count: Of numbers.

        Returns:
            The offset by which a specification names it.
        """
        data = memoryview(raw).cast("B")
        unused = len(data) * 8 - count * BITS[dtype] if dtype in BITS else 0
        offset = self._end
        start = offset + RECORD_BYTES
        head = RECORD.pack(SENTINEL, CODES[dtype], len(data), start, unused)
        self._file.write(head.ljust(RECORD_BYTES, b"\0"))
        self._file.write(data)
        rest = -len(data) % RECORD_BYTES
        self._file.write(bytes(rest))
        self._count, self._end = self._count + 1, start + len(data) + rest
        return offset

    def finish(self) -> None:
        """Write the header. The writer is of no use afterwards."""
        self._file.seek(0)
        self._file.write(HEADER.pack(self._count, VERSION))


class Rewriter:
    """Copies constants of packages into a new weight file. A context manager.

    Equal tensors are written once, whichever package or function they come from.

    Args:
        weights: The file to write.
    """

    def __init__(self, weights: Path) -> None:
        weights.parent.mkdir(parents=True, exist_ok=True)
        self._out = weights.open("wb")
        self._blobs = BlobWriter(self._out)
        self._sources: dict[Path, BlobFile] = {}
        self._written: dict[tuple[bytes, str], int] = {}

    def __enter__(self) -> Rewriter:
        return self

    def __exit__(self, *unused: object) -> None:
        self._blobs.finish()
        self._out.close()

    def copy(self, operation: Any, source: Package) -> None:
        """Copy every constant that an operation reads from a package's weight file; point it at the new
        one."""
        values = list(operation.attributes.values())
        values += [b.value for argument in operation.inputs.values() for b in argument.arguments]
        what = operation.outputs[0].name if operation.outputs else operation.type
        for value in values:
            if value.WhichOneof("value") != "blobFileValue":
                continue
            blob = value.blobFileValue
            path = weight_file(source, blob.fileName)
            if path not in self._sources:
                self._sources[path] = BlobFile(path)
            raw, dtype, count = self._sources[path].raw(blob.offset, what)
            blob.fileName, blob.offset = MODEL_PATH + WEIGHTS, self._write(raw, dtype, count)

    def _write(self, raw: Any, dtype: str, count: int) -> int:
        key = (hashlib.blake2b(raw, digest_size=16).digest(), f"{dtype} {count}")
        if key not in self._written:
            self._written[key] = self._blobs.write(raw, dtype, count)
        return self._written[key]

    def value(self, array: np.ndarray, dtype: str, shape: tuple[int, ...] | None = None) -> Any:
        """A constant as MIL's `Value`: in the weight file, or in the specification where it is small.

        Args:
            array: Numbers of fewer than eight bits are packed already.
            dtype: MIL's name.
            shape: Of the constant; the array's own when None.
        """
        shape = array.shape if shape is None else shape
        count = int(np.prod(shape, dtype=np.int64))
        value = typed_value(dtype, shape)
        if count < SMALL and dtype not in BITS:
            _set_immediate(value.immediateValue.tensor, array, dtype)
        else:
            value.blobFileValue.fileName = MODEL_PATH + WEIGHTS
            raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            value.blobFileValue.offset = self._write(raw, dtype, count)
        return value


def typed_value(dtype: str, shape: tuple[int, ...]) -> Any:
    """A `Value` of a tensor type, as yet without content."""
    from coremltools.proto import MIL_pb2

    value = MIL_pb2.Value()
    set_type(value.type.tensorType, dtype, shape)
    return value


def set_type(tensor: Any, dtype: str, shape: tuple[int, ...]) -> None:
    """Fill in a `TensorType`."""
    tensor.dataType, tensor.rank = TYPES[dtype], len(shape)
    del tensor.dimensions[:]
    for size in shape:
        tensor.dimensions.add().constant.size = int(size)


def _set_immediate(tensor: Any, array: np.ndarray, dtype: str) -> None:
    """MIL reads float16 and whole numbers of one byte (and unsigned ones) from bytes."""
    if dtype == "float32":
        tensor.floats.values.extend(float(x) for x in array.reshape(-1))
    elif dtype == "int32":
        tensor.ints.values.extend(int(x) for x in array.reshape(-1))
    else:
        tensor.bytes.values = np.ascontiguousarray(array).tobytes()


def text(content: str) -> Any:
    """A `Value` that holds a string."""
    value = typed_value("string", ())
    value.immediateValue.tensor.strings.values.append(content)
    return value


def stored_bytes(kind: Any) -> int:
    """Bytes of a constant of a `ValueType`, packed numbers as they are packed."""
    found = type_of(kind)
    if found is None:
        return 0
    count = int(np.prod([size or 1 for size in found[1]], dtype=np.int64))
    width = {"float16": 2, "bfloat16": 2, "int16": 2, "uint16": 2, "int8": 1, "uint8": 1, "bool": 1}
    return count * BITS[found[0]] // 8 if found[0] in BITS else count * width.get(found[0], 4)
