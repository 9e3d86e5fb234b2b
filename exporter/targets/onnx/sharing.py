"""Several graph files over one data file: two graphs of one module have most of their weights in common."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import onnx

ALIGNMENT = 4096
PIECE = 1 << 22


def share_data(first: Path, other: Path, path: Path) -> Path:
    """Move a graph to `path` beside `first`, with its weights in the data file of that one.

    Weights are the same where their bytes are; what the first lacks is appended to its file, which it does
    not notice. The files of `other` are deleted, and its folder.

    Args:
        first / other: Graph files with all their data in one file each, `<name>_data` beside them.

    Returns:
        The common data file.
    """
    import onnx

    target, source = (each.with_name(f"{each.name}_data") for each in (first, other))
    places: dict[bytes, int] = {}
    with target.open("rb") as data:
        for tensor in _outside(onnx.load(first, load_external_data=False)):
            offset, size = _place(tensor)
            places.setdefault(_digest(data, offset, size), offset)
    model = onnx.load(other, load_external_data=False)
    with source.open("rb") as data, target.open("ab") as end:
        for tensor in _outside(model):
            offset, size = _place(tensor)
            digest = _digest(data, offset, size)
            if digest not in places:
                end.write(b"\0" * (-end.tell() % ALIGNMENT))
                places[digest] = end.tell()
                _copy(data, offset, size, end)
            for entry in tensor.external_data:
                if entry.key in ("location", "offset"):
                    entry.value = target.name if entry.key == "location" else str(places[digest])
    path.write_bytes(model.SerializeToString(deterministic=True))
    source.unlink()
    other.unlink()
    other.parent.rmdir()
    return target


def _outside(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Initializers whose bytes lie in another file."""
    return [tensor for tensor in model.graph.initializer if tensor.external_data]


def _place(tensor: onnx.TensorProto) -> tuple[int, int]:
    """(offset, bytes)."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    return int(said.get("offset", 0)), int(said["length"])


def _digest(data: BinaryIO, offset: int, size: int) -> bytes:
    data.seek(offset)
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    for start in range(0, size, PIECE):
        digest.update(data.read(min(PIECE, size - start)))
    return digest.digest()


def _copy(data: BinaryIO, offset: int, size: int, end: BinaryIO) -> None:
    data.seek(offset)
    for start in range(0, size, PIECE):
        end.write(data.read(min(PIECE, size - start)))
