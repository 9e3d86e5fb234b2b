"""TorchScript: one zip archive. The program is text in it, what it says of itself JSON, weights are entries.

libtorch does not compare an entry's CRC when it reads it, Python's `zipfile` does. It is brought up to
date after every change, so that no gate can find a fault by it.
"""

from __future__ import annotations

import itertools
import json
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.artifact import Artifact
from tests.mutation.blob import Blob
from tests.mutation.formats.base import Edit, Format, part, register
from tests.mutation.formats.common import STORED, baked

if TYPE_CHECKING:
    from tests.mutation.workshop import Workshop

ENTRY = "model.pt"
STATIC = (1, 64, 64)
STORAGES = {"FloatStorage": "float32", "HalfStorage": "float16"}
CENTRAL, DESCRIPTOR = b"PK\x01\x02", b"PK\x07\x08"
PROGRAM = re.compile(r"/code/__torch__/exporter/architectures/.+\.py$")
"""The file with the program, whose name a second trace in one process mangles. Everything else is what it was
traced from."""


@dataclass(frozen=True)
class Entry(Blob):
    """A tensor in an archive."""

    name: str = ""

    def write(self, array: np.ndarray) -> None:
        super().write(array)
        mend(self.file, self.name)


def mend(path: Path, name: str) -> None:
    """Bring an uncompressed entry's CRC up to date, in the directory and behind its bytes."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name)
        directory = archive.start_dir
    data = bytearray(path.read_bytes())
    begin = _begin(data, info)
    crc = struct.pack("<I", zlib.crc32(data[begin : begin + info.file_size]))
    behind = begin + info.file_size
    if data[behind : behind + 4] == DESCRIPTOR:
        data[behind + 4 : behind + 8] = crc
    place = directory
    while data[place : place + 4] == CENTRAL:
        lengths = struct.unpack_from("<HHH", data, place + 28)
        (offset,) = struct.unpack_from("<I", data, place + 42)
        if offset == info.header_offset:
            data[place + 16 : place + 20] = crc
            path.write_bytes(data)
            return
        place += 46 + sum(lengths)
    raise LookupError(f"{name} is not in the directory of {path.name}")


def _begin(data: bytes | bytearray, info: zipfile.ZipInfo) -> int:
    """The first byte of an entry's content."""
    return info.header_offset + 30 + sum(struct.unpack_from("<HH", data, info.header_offset + 26))


def blobs(folder: Path) -> list[Blob]:
    """Every contiguous float tensor among the module's own."""
    path = folder / ENTRY
    data = path.read_bytes()
    found: dict[tuple[str, int], Blob] = {}
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/")[0]
        for key, dtype, start, shape, stride in _tensors(archive.read(f"{root}/data.pkl")):
            name = f"{root}/data/{key}"
            if dtype is None or stride != _contiguous(shape):
                continue
            offset = _begin(data, archive.getinfo(name)) + start * np.dtype(dtype).itemsize
            found[key, start] = Entry(path, offset, shape, dtype, name)
    return list(found.values())


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))


def _tensors(data: bytes) -> list[tuple[str, str | None, int, tuple[int, ...], tuple[int, ...]]]:
    """(entry, dtype, first element, shape, stride) of every tensor that a pickle of a module names. Nothing
    of the pickle is called."""
    import io

    found = []

    class Anything:
        def __init__(self, *given: Any) -> None:
            pass

        def __setstate__(self, state: Any) -> None:
            pass

    def rebuild(storage: tuple[str, str | None], start: int, shape: Any, stride: Any, *rest: Any) -> None:
        found.append((*storage, start, tuple(shape), tuple(stride)))

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if name == "_rebuild_tensor_v2":
                return rebuild
            return name if name.endswith("Storage") else type(name, (Anything,), {})

        def persistent_load(self, given: Any) -> tuple[str, str | None]:
            return given[2], STORAGES.get(given[1])

    Reader(io.BytesIO(data)).load()
    return found


def rewrite(path: Path, chosen: Callable[[str], bool], change: Callable[[str], str]) -> None:
    """Change the text of the one entry that `chosen` picks.

    Raises:
        LookupError: Nothing changed, or the entry is not there once.
    """
    beside, done = path.with_suffix(".new"), 0
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(beside, "w") as new:
        edited = [info.filename for info in old.infolist() if chosen(info.filename)]
        for info in old.infolist():
            if info.filename.removesuffix(".debug_pkl") in edited and info.filename not in edited:
                continue  # where each byte of the text came from, which is no longer true
            content = old.read(info)
            if info.filename in edited:
                text = content.decode()
                changed = change(text)
                done += changed != text
                content = changed.encode()
            new.writestr(zipfile.ZipInfo(info.filename), content)
    if done != 1:
        beside.unlink()
        raise LookupError(f"{done} of the entries {edited} of {path.name} changed")
    beside.replace(path)


def code(pattern: str, by: str) -> Edit:
    """Replace the first match of a regular expression in the program."""

    def change(text: str) -> str:
        return re.sub(pattern, by, text, count=1)

    def edit(shop: Workshop, root: Path) -> None:
        rewrite(part(root) / ENTRY, lambda name: PROGRAM.search(name) is not None, change)

    return edit


def declare(change: Callable[[dict[str, Any]], None]) -> Edit:
    """Change what the archive says of itself."""

    def edit(shop: Workshop, root: Path) -> None:
        say(part(root), change)

    return edit


def say(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    def changed(text: str) -> str:
        declaration = json.loads(text)
        change(declaration)
        return json.dumps(declaration, sort_keys=True)

    rewrite(folder / ENTRY, lambda name: name.endswith("/extra/exporter.json"), changed)


def both(*edits: Edit) -> Edit:
    def edit(shop: Workshop, root: Path) -> None:
        for each in edits:
            each(shop, root)

    return edit


def _rename(declaration: dict[str, Any]) -> None:
    declaration["outputs"][0]["name"] = "renamed"


def _add(declaration: dict[str, Any]) -> None:
    declaration["outputs"].append(declaration["outputs"][0] | {"name": "extra"})


def _drop(declaration: dict[str, Any]) -> None:
    del declaration["outputs"][-1]


def _reverse(declaration: dict[str, Any]) -> None:
    declaration["outputs"].reverse()


def _exchange(declaration: dict[str, Any]) -> None:
    """Each of the two outputs under the other's name, with the shape that goes with it."""
    first, second = declaration["outputs"]
    first["name"], second["name"] = second["name"], first["name"]


def fixed(shop: Workshop, root: Path) -> None:
    """The program takes one size only. (A trace at one size does not: PyTorch traces most sizes as values, so
    that what is declared static is still right at others.)"""
    from exporter.targets.base import component_size

    component = shop.components[Artifact.open(root).manifest.components[0].name]
    native, spec = component.native, component.inputs[0]
    shape = list(spec.shape(component_size(component, (1, native.height, native.width))))
    code(rf"torch\._convolution\({spec.name}, ", f"torch._convolution(torch.view({spec.name}, {shape}), ")(
        shop, root
    )


RETURNED = r"return \((.+),\)"
PAIR = r"return \((\w+), (\w+)\)"
SIGNATURE = r"-> Tuple\[Tensor\]"
FIRST_PADDED = r"torch\._convolution\((\w+), (\w+), (\w+), \[1, 1\], \[1, 1\]"

EDITS: dict[str, Edit] = STORED | {
    "output-renamed": declare(_rename),
    "output-extra": both(
        declare(_add),
        code(SIGNATURE, "-> Tuple[Tensor, Tensor]"),
        code(RETURNED, r"return (\1, \1)"),
    ),
    "output-missing": both(
        declare(_drop), code(r"-> Tuple\[Tensor, Tensor\]", "-> Tuple[Tensor]"), code(PAIR, r"return (\1,)")
    ),
    "output-dtype": code(RETURNED, r"return (torch.to(\1, 5),)"),
    "output-float16": code(RETURNED, r"return (torch.to(torch.to(\1, 5), 6),)"),
    "output-order": both(declare(_reverse), code(PAIR, r"return (\2, \1)")),
    "output-exchanged": declare(_exchange),
    "tanh-gelu": code(r"torch\.gelu\((\w+)\)", r'torch.gelu(\1, approximate="tanh")'),
    "bilinear": code(
        r"torch\.upsample_nearest2d\((\w+), ([^\n]*?), (None|\[[^\]]*\])\)",
        r"torch.upsample_bilinear2d(\1, \2, False, \3)",
    ),
    "padding": code(
        FIRST_PADDED, r"torch._convolution(torch.constant_pad_nd(\1, [0, 0, -1, 1]), \2, \3, [1, 1], [1, 1]"
    ),
    "sin-cos": code(r"torch\.sin\((\w+)\), torch\.cos\((\w+)\)", r"torch.cos(\1), torch.sin(\2)"),
    "baked": baked(),
    "baked-declared": fixed,
    "baked-picture": fixed,
}


def _forms() -> list[dict[str, Any]]:
    further: tuple[dict[str, Any], ...] = ({}, {"freeze": True}, {"channels_last": True})
    return [
        {"dtype": dtype} | static | more
        for dtype, static, more in itertools.product(
            ("float32", "float16", "bfloat16"), ({}, {"static": STATIC}), further
        )
    ]


register(
    Format(
        "torchscript",
        "TorchScript",
        "torchscript",
        edits=EDITS,
        blobs=blobs,
        honest=_forms(),
        excluded={"stale-data": "graph and weights are one file"},
    )
)
