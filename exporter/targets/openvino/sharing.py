"""Several `.xml` files over one `.bin`: the sizes of a component differ in a few constants only."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import BinaryIO

BIN = "openvino_model.bin"
"""Where the weights lie of every `.xml` that has no `.bin` of its own name."""
PLACE = re.compile(r'offset="(\d+)" size="(\d+)"')
"""Of a constant in an `.xml`: where in the `.bin` its bytes are."""
PIECE = 1 << 22
ALIGNMENT = 64


def weights_of(xml: Path) -> Path:
    """The file with the constants of an `.xml`: of its own name, else the one that its sizes share."""
    own = xml.with_suffix(".bin")
    return own if own.is_file() else xml.with_name(BIN)


def share_constants(first: Path, other: Path) -> int:
    """Point every constant of `other` into the `.bin` of `first` and delete its own `.bin`.

    Constants are the same where their bytes are. What the first lacks (sizes that were baked) is
    appended to its file, which `first` does not notice.

    Args:
        first / other: `.xml` files, each with its `.bin`. The second is opened beside the first.

    Returns:
        The number of bytes that were appended.
    """
    target, source = first.with_suffix(".bin"), other.with_suffix(".bin")
    places: dict[bytes, int] = {}
    with target.open("rb") as data:
        for offset, size in _places(first):
            places.setdefault(_digest(data, offset, size), offset)
    before = target.stat().st_size
    moved: dict[tuple[int, int], int] = {}
    with source.open("rb") as data, target.open("ab") as end:
        for offset, size in _places(other):
            digest = _digest(data, offset, size)
            if digest not in places:
                end.write(b"\0" * (-end.tell() % ALIGNMENT))
                places[digest] = end.tell()
                data.seek(offset)
                for start in range(0, size, PIECE):
                    end.write(data.read(min(PIECE, size - start)))
            moved[offset, size] = places[digest]

    def place(match: re.Match[str]) -> str:
        offset, size = int(match[1]), int(match[2])
        return f'offset="{moved[offset, size]}" size="{size}"'

    other.write_text(PLACE.sub(place, other.read_text(encoding="utf-8")), encoding="utf-8")
    source.unlink()
    return target.stat().st_size - before


def _places(xml: Path) -> list[tuple[int, int]]:
    found = PLACE.findall(xml.read_text(encoding="utf-8"))
    return list(dict.fromkeys((int(offset), int(size)) for offset, size in found))


def _digest(data: BinaryIO, offset: int, size: int) -> bytes:
    data.seek(offset)
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    for start in range(0, size, PIECE):
        digest.update(data.read(min(PIECE, size - start)))
    return digest.digest()
