"""Quantised weights: faults in codes, scales and zero points, and honest conversions of every scheme."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

import numpy as np

from tests.mutation.blob import Blob
from tests.mutation.faults import Fault
from tests.mutation.formats.base import Format, part
from tests.mutation.formats.onnx import ONNX
from tests.mutation.formats.openvino import OPENVINO
from tests.mutation.workshop import Workshop, rehash, sharing_graphs

Options = dict[str, Any]
TARGETS = ("onnx", "openvino")
INT8: Options = {"weights": "int8"}
INT4: Options = {"weights": "int4", "group_size": 32}
KERNEL = "conv_in.weight"
MATRIX = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
TABLE = "text_model.embeddings.token_embedding.weight"
IR_TYPES = {"f32": "float32", "f16": "float16", "u8": "uint8", "i8": "int8", "u4": "uint8", "i4": "uint8"}


@dataclass(frozen=True)
class CodeFault(Fault):
    """One of the tensors that stand for a quantised weight is overwritten; four-bit ones as their bytes.

    Attributes:
        weight: Name in the checkpoint.
        which: `codes`, `scales` or `zeros`.
    """

    weight: str
    which: str
    change: Callable[[np.ndarray], np.ndarray]
    options: Options = field(default_factory=lambda: INT8)
    place: ClassVar[str] = "data file"

    def _why_not(self, known: Format) -> str | None:
        return None if known.name in TARGETS else "the format has no such weights here"

    def _plant(self, shop: Workshop, target: str) -> Path:
        root = copy(shop, target, self.component, self.options, self.name)
        blob = blob_of(part(root), f"{self.weight}.{self.which}")
        before = blob.read()
        with np.errstate(over="ignore", invalid="ignore"):
            after = self.change(before.copy()).astype(blob.dtype)
        if np.array_equal(before, after):
            raise ValueError(f"{self.name} changes nothing")
        blob.write(after)
        rehash(root)
        return root


def copy(shop: Workshop, target: str, component: str, options: Options, name: str) -> Path:
    """A copy of the honest quantised artifact of one component, which is converted once."""
    from filelock import FileLock

    from exporter.conversion import convert, make_plan

    label = "-".join(map(str, options.values()))
    honest = shop.folder / f"honest-{target}-{component}-{label}"
    shop.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(shop.folder / f"{honest.name}.lock"):
        if not honest.exists():
            with sharing_graphs(f"{target}-{label}"):  # quantising changes the graph
                convert(make_plan(shop.source, target, honest, options, components=[component], verify=False))
    root = shop.folder / "planted" / f"{target}-{name}"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(honest, root)
    return root


def blob_of(folder: Path, name: str) -> Blob:
    """A stored tensor by name; four-bit numbers as the bytes that hold them."""
    if (folder / ONNX).is_file():
        import onnx

        model = onnx.load(folder / ONNX, load_external_data=False)
        tensor = next(t for t in model.graph.initializer if t.name == name)
        where = {entry.key: entry.value for entry in tensor.external_data}
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        return Blob(folder / where["location"], int(where["offset"]), tuple(tensor.dims), dtype)
    layers = ElementTree.parse(folder / OPENVINO).getroot().iter("layer")
    note = next(layer.find("data") for layer in layers if layer.get("name") == name)
    assert note is not None
    kind = str(note.get("element_type"))
    shape = tuple(int(n) for n in str(note.get("shape")).split(","))
    if kind in ("u4", "i4"):
        shape = (int(str(note.get("size"))),)
    data = (folder / OPENVINO).with_suffix(".bin")
    return Blob(data, int(str(note.get("offset"))), shape, IR_TYPES[kind])


def _first(value: Callable[[Any], Any]) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        flat = array.reshape(-1)
        flat[0] = value(flat[0])
        return array

    return change


def _nibbles(array: np.ndarray) -> np.ndarray:
    """The two codes of one byte exchanged: of the first byte where they differ by more than one."""
    flat = array.reshape(-1)
    low, high = (flat & 15).astype(int), (flat >> 4).astype(int)
    place = int(np.argmax(np.abs(low - high)))
    flat[place] = (low[place] << 4) | high[place]
    return array


def _rows(array: np.ndarray) -> np.ndarray:
    array[[0, 1]] = array[[1, 0]]
    return array


def _farther(code: Any) -> int:
    return int(code) + 1 if int(code) < 100 else int(code) - 1


_F = CodeFault
FAULTS: list[Fault] = [
    _F("int8-scale", "int8: one scale × 1.05", "unet", KERNEL, "scales", _first(lambda s: s * 1.05),
       by_sight=True),
    _F("int8-scale-nan", "int8: one scale is NaN", "unet", KERNEL, "scales", _first(lambda s: np.nan),
       by_sight=True),
    _F("int8-scale-zero", "int8: one scale is zero", "unet", KERNEL, "scales", _first(lambda s: 0),
       by_sight=True),
    _F("int8-zero-point", "int8: one zero point off by one", "unet", KERNEL, "zeros", _first(_farther),
       by_sight=True),
    _F("int8-code", "int8: one code off by one", "unet", KERNEL, "codes", _first(_farther),
       by_sight=True),
    _F("int8-rows", "int8: codes of two output channels swapped", "unet", MATRIX, "codes", _rows,
       by_sight=True),
    _F("int8-table", "int8: zero point of a token off by one", "text_encoder", TABLE, "zeros",
       _first(_farther), by_sight=True),
    _F("int4-nibbles", "int4: the two codes of one byte swapped", "unet", MATRIX, "codes", _nibbles, INT4,
       by_sight=True),
    _F("int4-scale", "int4: one scale × 1.25", "unet", MATRIX, "scales", _first(lambda s: s * 1.25), INT4,
       by_sight=True),
    _F("int4-scale-nan", "int4: one scale is NaN", "unet", MATRIX, "scales", _first(lambda s: np.nan), INT4,
       by_sight=True),
    _F("int4-zero-point", "int4: zero points of two groups off by one", "unet", MATRIX, "zeros",
       _first(lambda z: int(z) ^ 0x11), INT4, by_sight=True),
]  # fmt: skip


def forms(targets: Sequence[str]) -> list[tuple[str, Options]]:
    """Honest conversions: bits × with and without a zero point × dtype of the rest, and forms of int4."""
    found: list[tuple[str, Options]] = []
    for target in (target for target in TARGETS if target in targets):
        for bits, symmetric in itertools.product(("int8", "int4"), (False, True)):
            found.append((target, {"weights": bits, "symmetric": symmetric}))
        found += [
            (target, {"weights": "int8", "dtype": "float16"}),
            (target, {"weights": "int4", "group_size": 16, "ratio": 0.5}),
            (target, {"weights": "int4", "static": (1, 64, 64)}),
        ]
    return found
