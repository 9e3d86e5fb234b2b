"""A safetensors file opened lazily: header checked, tensors memory-mapped one at a time.

The header is read and validated here rather than by the safetensors package because the
exporters need each tensor's byte range (weights are streamed file to file), and because a
truncated or lying header must give one clear sentence.

Format: <https://huggingface.co/docs/safetensors>. 8 bytes little-endian header length, the
JSON header, then the data; every tensor has dtype, shape and [begin, end) within the data.
"""

from __future__ import annotations

import json
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.errors import CheckpointError

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES = 100_000_000
"""The limit of the format's own reader: a longer header is an attack or a corrupt file."""

MAX_DIMS, MAX_SIZE = 64, 2**62

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """One tensor where it lies: nothing is read until `load()`.

    Attributes:
        name: The name in the file.
        dtype: Safetensors' name of the dtype (`F32`, `F16`, `BF16`, …).
        shape: Dimensions.
        file: The file that holds it.
        offset: First byte, counted from the start of the file.
        nbytes: Length in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: SafetensorsFile
    offset: int
    nbytes: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def torch_dtype(self) -> torch.dtype:
        return _torch_dtype(self.dtype)

    def load(self) -> torch.Tensor:
        """The tensor, memory-mapped (copy-on-write): pages are read when they are touched."""
        import torch

        dtype = _torch_dtype(self.dtype)
        if self.nbytes == 0:
            return torch.empty(self.shape, dtype=dtype)
        flat = torch.frombuffer(self.file.map(), dtype=torch.uint8, count=self.nbytes, offset=self.offset)
        if self.offset % dtype.itemsize:
            flat = flat.clone()  # view() needs aligned storage; the format allows any alignment
        return flat.view(dtype).view(self.shape)

    def raw(self) -> memoryview:
        """The stored bytes, memory-mapped and not interpreted."""
        return memoryview(self.file.map())[self.offset : self.offset + self.nbytes]

    def release(self) -> None:
        """Hand the pages that were read through the mapping back to the system; they stay readable."""
        mapped = self.file._map
        if mapped is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        # Only whole pages of this tensor. The mapping is private and never written, so nothing is lost.
        first = -(-self.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (self.offset + self.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last:
            mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


class SafetensorsFile:
    """A checked safetensors file.

    Raises:
        CheckpointError: The file is truncated, its header is not valid, or a tensor lies
            outside the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: mmap.mmap | None = None
        self.metadata: dict[str, str] = {}
        self.tensors: dict[str, StoredTensor] = self._read_header()

    def map(self) -> mmap.mmap:
        """The whole file, mapped copy-on-write so that torch may view it as writable."""
        if self._map is None:
            with self.path.open("rb") as handle:
                self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._map

    def _bad(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path.name} is not a usable safetensors file: {why} ({self.path}).",
            hint="Download the file again; it was probably cut off.",
        )

    def _read_header(self) -> dict[str, StoredTensor]:
        if not self.path.is_file():  # a pipe or a device would never end
            raise self._bad("it is not a file")
        size = self.path.stat().st_size
        with self.path.open("rb") as handle:
            prefix = handle.read(8)
            if len(prefix) < 8:
                raise self._bad(f"it has only {size} bytes")
            length = int.from_bytes(prefix, "little")
            if length > MAX_HEADER_BYTES or 8 + length > size:
                raise self._bad(f"its header claims {length} bytes, the file has {size}")
            raw = handle.read(length)
        try:
            header = json.loads(raw)
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            raise self._bad("its header is not JSON") from error
        if not isinstance(header, dict):
            raise self._bad("its header is not a JSON object")
        metadata = header.pop("__metadata__", {})
        self.metadata = metadata if isinstance(metadata, dict) else {}
        start = 8 + length
        found = {name: self._entry(name, entry, start, size) for name, entry in header.items()}
        end, before = 0, ""
        for tensor in sorted(found.values(), key=lambda t: t.offset):
            if tensor.nbytes and tensor.offset < end:  # as the format's own reader: one byte, one tensor
                raise self._bad(f"the tensors {before!r} and {tensor.name!r} lie over each other")
            if tensor.nbytes:
                end, before = tensor.offset + tensor.nbytes, tensor.name
        return found

    def _entry(self, name: str, entry: object, start: int, size: int) -> StoredTensor:
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]  # type: ignore[index]
            item = ITEM_BYTES[dtype]
            numbers = (*shape, begin, end)
            # Bounded before they are multiplied: a product of long numbers takes time and memory.
            sane = isinstance(shape, list) and len(shape) <= MAX_DIMS
            sane = sane and all(type(n) is int and 0 <= n <= MAX_SIZE for n in numbers)
            expected = math.prod(shape) * item if sane else -1
        except (KeyError, TypeError, ValueError) as error:
            raise self._bad(f"the entry of tensor {name[:200]!r} is malformed") from error
        if not sane or end - begin != expected:
            raise self._bad(f"tensor {name!r} does not have the bytes its shape asks for")
        if start + end > size:
            raise self._bad(f"tensor {name!r} ends at byte {start + end}, the file has {size}")
        return StoredTensor(name, dtype, tuple(shape), self, start + begin, expected)


def _torch_dtype(name: str) -> torch.dtype:
    import torch

    names = {
        "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
        "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
        "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
        "U16": "uint16", "U32": "uint32", "U64": "uint64",
    }  # fmt: skip
    return getattr(torch, names[name])
