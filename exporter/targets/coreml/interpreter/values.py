"""Constants of a MIL program: a protobuf `Value` as a torch tensor, a string, or a tuple of these."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from exporter.errors import ArtifactError
from exporter.targets.coreml.interpreter.blob import BITS, BlobFile, unpack
from exporter.targets.coreml.package import Package, weight_file

NAMES = {
    1: "bool", 2: "string", 10: "float16", 11: "float32", 12: "float64", 13: "bfloat16", 21: "int8",
    22: "int16", 23: "int32", 24: "int64", 25: "int4", 31: "uint8", 32: "uint16", 33: "uint32",
    34: "uint64", 35: "uint4", 36: "uint2", 37: "uint1", 38: "uint6", 39: "uint3",
}  # fmt: skip
"""`MIL.DataType` → the name used here."""
STORED_AS = {
    "int4": torch.int8, "uint1": torch.uint8, "uint2": torch.uint8, "uint3": torch.uint8,
    "uint4": torch.uint8, "uint6": torch.uint8, "uint16": torch.int32, "uint32": torch.int64,
    "uint64": torch.int64,
}  # fmt: skip
"""torch computes little in these; the values are held in a type that it has."""
BYTES = {"float16", "bfloat16", "int8", "uint8", "int16", "uint16", "uint32", "uint64"}

Value = Any
"""`torch.Tensor | str | tuple[Value, ...]`"""


def torch_dtype(name: str) -> torch.dtype:
    """The dtype in which values of a MIL type are held."""
    stored = STORED_AS.get(name)
    return stored if stored is not None else getattr(torch, name)


def type_of(proto: Any) -> tuple[str, tuple[int | None, ...]] | None:
    """(dtype name, shape) of a `ValueType`; None where it is no tensor. An unknown dim is None."""
    if proto.WhichOneof("type") != "tensorType":
        return None
    tensor = proto.tensorType
    shape = tuple(
        int(dim.constant.size) if dim.WhichOneof("dimension") == "constant" else None
        for dim in tensor.dimensions
    )
    return NAMES.get(tensor.dataType, f"type {tensor.dataType}"), shape


class Constants:
    """Reads constants of one package; weight files are opened once.

    Args:
        package: Where the files lie.
    """

    def __init__(self, package: Package) -> None:
        self.package = package
        self._files: dict[str, BlobFile] = {}

    def read(self, proto: Any, what: str) -> Value:
        """
        Args:
            proto: A MIL `Value`.
            what: Its name, for errors.

        Raises:
            ArtifactError: It points outside its file, or is of a kind that no model of this house has.
        """
        where = proto.WhichOneof("value")
        if where == "immediateValue":
            immediate = proto.immediateValue
            kind = immediate.WhichOneof("value")
            if kind == "tuple":
                return tuple(self.read(item, what) for item in immediate.tuple.values)
            if kind == "list":
                return tuple(self.read(item, what) for item in immediate.list.values)
            if kind != "tensor":
                raise ArtifactError(f"{what} is a constant {kind}, which the interpreter does not know.")
        dtype, shape = self._type(proto, what)
        count = math.prod(shape)
        if where == "blobFileValue":
            blob = proto.blobFileValue
            array = self._file(blob.fileName).read(blob.offset, dtype, count, what)
        else:
            array = immediate_array(proto.immediateValue.tensor, dtype, count, what)
            if dtype == "string":
                return array if isinstance(array, str) else tuple(array)
        return as_tensor(array, dtype).reshape(shape)

    def _type(self, proto: Any, what: str) -> tuple[str, tuple[int, ...]]:
        found = type_of(proto.type)
        if found is None or None in found[1]:
            raise ArtifactError(f"{what} is a constant without a shape.")
        dtype, shape = found
        return dtype, tuple(int(dim) for dim in shape if dim is not None)

    def _file(self, name: str) -> BlobFile:
        if name not in self._files:
            self._files[name] = BlobFile(weight_file(self.package, name))
        return self._files[name]


def immediate_array(tensor: Any, dtype: str, count: int, what: str) -> Any:
    """A constant that stands in the specification itself: a flat array, or a string.

    Raises:
        ArtifactError: Fewer or more numbers than the shape asks for.
    """
    kind = tensor.WhichOneof("value")
    values: Any = getattr(tensor, kind).values if kind else ()
    if dtype == "string":
        return values[0] if count == 1 else list(values)
    if kind == "bytes":
        raw = np.frombuffer(values, np.uint8)
        if dtype in BITS:
            return unpack(raw, dtype, count)
        array = raw.view("uint16" if dtype == "bfloat16" else dtype)
    else:
        array = np.array(values, dtype={"float16": "float32", "bfloat16": "float32"}.get(dtype, dtype))
    if array.size != count:
        raise ArtifactError(f"{what} holds {array.size} numbers, its shape asks for {count}.")
    return array


def as_tensor(array: np.ndarray, dtype: str) -> torch.Tensor:
    """A flat array as a tensor of the dtype in which such values are held; a view where it can be one."""
    if dtype == "bfloat16" and array.dtype == np.uint16:
        return torch.from_numpy(array.astype(np.int16, copy=True)).view(torch.bfloat16)
    if dtype in ("uint16", "uint32", "uint64"):
        array = array.astype(np.int64)
    if not array.flags.writeable:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch knows no read-only tensors; nothing writes into these
            return torch.from_numpy(array).to(torch_dtype(dtype))
    return torch.from_numpy(array).to(torch_dtype(dtype))
