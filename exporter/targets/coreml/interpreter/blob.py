"""Blob storage version 2: the `weight.bin` of a Core ML package, read with numpy alone.

Layout (MILBlob, <https://github.com/apple/coremltools/tree/main/mlmodel/src/MILBlob>): a 64-byte header
(u32 count, u32 version = 2); at each offset that the model names, a 64-byte record (u32 0xDEADBEEF, u32
dtype, u64 bytes, u64 data offset). Numbers below eight bits are packed, the lowest bits first.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from exporter.errors import ArtifactError

HEADER = struct.Struct("<II")
RECORD = struct.Struct("<IIQQQ")
RECORD_BYTES = 64
SENTINEL = 0xDEADBEEF
VERSION = 2
DTYPES = {
    1: "float16", 2: "float32", 3: "uint8", 4: "int8", 5: "bfloat16", 6: "int16", 7: "uint16",
    8: "int4", 9: "uint1", 10: "uint2", 11: "uint4", 12: "uint3", 13: "uint6", 14: "int32", 15: "uint32",
}  # fmt: skip
STORED = {"bfloat16": "uint16"}
"""numpy knows no bfloat16."""
BITS = {"int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6}


class BlobFile:
    """A weight file, memory-mapped: reading a tensor copies nothing.

    Raises:
        ArtifactError: Too short to be one, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        if self.size < RECORD_BYTES:
            raise ArtifactError(f"{path.name} has {self.size} bytes: the weight file is cut short.")
        self._bytes = np.memmap(path, np.uint8, mode="r")
        _, version = HEADER.unpack(self._bytes[: HEADER.size].tobytes())
        if version != VERSION:
            raise ArtifactError(f"{path.name} has blob storage version {version}; {VERSION} can be read.")

    def read(self, offset: int, dtype: str, count: int, what: str) -> np.ndarray:
        """One tensor, flat.

        Args:
            offset: Of its record.
            dtype: That the model declares; must be the file's own.
            count: Of numbers; must be the file's own.
            what: Its name, for errors.

        Returns:
            A read-only view; numbers below eight bits unpacked into (u)int8.

        Raises:
            ArtifactError: The record lies outside the file, or disagrees with the model.
        """
        code, start, size, _ = self._record(offset, what)
        if DTYPES.get(code) != dtype:
            raise ArtifactError(
                f"{what} is {DTYPES.get(code, f'of the unknown type {code}')} in {self.path.name}, "
                f"{dtype} in the model."
            )
        raw = self._bytes[start : start + size]
        if dtype in BITS:
            needed = -(-count * BITS[dtype] // 8)
            if size != needed:
                raise ArtifactError(f"{what} has {size} bytes in {self.path.name}, {needed} expected.")
            return unpack(raw, dtype, count)
        kind = np.dtype(STORED.get(dtype, dtype))
        if size != count * kind.itemsize:
            raise ArtifactError(
                f"{what} has {size} bytes in {self.path.name}, {count * kind.itemsize} expected."
            )
        return raw.view(kind)

    def raw(self, offset: int, what: str) -> tuple[np.ndarray, str, int]:
        """One tensor as it lies there: its bytes, the name of its dtype, and how many numbers it holds.

        Raises:
            ArtifactError: The record lies outside the file, or its type is unknown.
        """
        code, start, size, unused = self._record(offset, what)
        dtype = DTYPES.get(code)
        if dtype is None:
            raise ArtifactError(f"{what} is of the unknown type {code} in {self.path.name}.")
        width = BITS[dtype] if dtype in BITS else 8 * np.dtype(STORED.get(dtype, dtype)).itemsize
        return self._bytes[start : start + size], dtype, (size * 8 - unused) // width

    def _record(self, offset: int, what: str) -> tuple[int, int, int, int]:
        """Code of the dtype, start and bytes of the data, bits at its end that belong to no number."""
        if offset < RECORD_BYTES or offset + RECORD_BYTES > self.size:
            raise ArtifactError(
                f"{what} is said to lie at byte {offset} of {self.path.name}, which has {self.size}.",
                hint="The weight file was cut off or belongs to another model; convert again.",
            )
        head = self._bytes[offset : offset + RECORD.size].tobytes()
        sentinel, code, size, start, unused = RECORD.unpack(head)
        if sentinel != SENTINEL:
            raise ArtifactError(f"{what}: there is no tensor at byte {offset} of {self.path.name}.")
        if start + size > self.size:
            raise ArtifactError(
                f"{what} is said to end at byte {start + size} of {self.path.name}, which has {self.size}.",
                hint="The weight file was cut off or belongs to another model; convert again.",
            )
        return code, start, size, unused


def unpack(raw: np.ndarray, dtype: str, count: int) -> np.ndarray:
    """Numbers of fewer than eight bits, packed the lowest bits first.

    Args:
        raw: uint8.
        dtype: One of `BITS`.

    Returns:
        uint8 or int8 of shape (count,).
    """
    return unpack_bits(raw, BITS[dtype], count, signed=dtype.startswith("int"))


def unpack_bits(raw: np.ndarray, bits: int, count: int, *, signed: bool = False) -> np.ndarray:
    """`count` numbers of `bits` bits each."""
    flat = np.unpackbits(np.asarray(raw, np.uint8), bitorder="little")[: count * bits].reshape(count, bits)
    weights = (1 << np.arange(bits)).astype(np.uint8)
    values = (flat * weights).sum(axis=1).astype(np.uint8)
    if not signed:
        return values
    return (values.astype(np.int16) - (values >= 1 << (bits - 1)) * (1 << bits)).astype(np.int8)
