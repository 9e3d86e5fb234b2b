"""Quantised artifacts: faults in codes, scales, zero points and ranges; honest conversions."""

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
from tests.mutation.formats.openvino import OPENVINO, edit_openvino
from tests.mutation.workshop import Workshop, rehash, sharing_graphs

Options = dict[str, Any]
TARGETS = ("onnx", "openvino")
INT8: Options = {"weights": "int8"}
INT4: Options = {"weights": "int4", "group_size": 32}
ACTIVATIONS: Options = {
    "weights": "int8", "activations": "int8", "calibration_steps": 2, "calibration_samples": 2,
    "calibration_prompts": ("a blue ring",),
}  # fmt: skip
KERNEL = "conv_in.weight"
MATRIX = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
TEXT = "text_model.encoder.layers.0.mlp.fc1.weight"
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
        if "activations" in self.options and known.name != "openvino":
            return "the format rounds no activations by itself"
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


@dataclass(frozen=True)
class RangeFault(Fault):
    """The rounding of activations is changed in the graph.

    Attributes:
        weight: Name in the checkpoint, of the product whose input it is.
        change: Given the model and that input's `FakeQuantize`.
    """

    weight: str
    change: Callable[[Any, Any], Any]
    options: Options = field(default_factory=lambda: ACTIVATIONS)
    place: ClassVar[str] = "graph file"

    def _why_not(self, known: Format) -> str | None:
        return None if known.name == "openvino" else "the format rounds no activations by itself"

    def _plant(self, shop: Workshop, target: str) -> Path:
        from exporter.targets.openvino.activations import behind_moves, weight_of

        def edit(model: Any) -> None:
            product = next(node for node in model.get_ordered_ops() if weight_of(node) == self.weight)
            self.change(model, behind_moves(product.input_value(0).get_node()))
            model.validate_nodes_and_infer_types()

        root = copy(shop, target, self.component, self.options, self.name)
        edit_openvino(part(root), edit)
        rehash(root)
        return root


def _ends(low: float, high: float, out: float | None = None) -> Callable[[Any, Any], Any]:
    """The ends of a range times these; `out` times the upper one of what comes out."""

    def change(model: Any, rounding: Any) -> None:
        from openvino import opset13 as ops

        factors = (low, high, low, high if out is None else out)
        for position, factor in enumerate(factors, 1):
            value = rounding.input_value(position).get_node().get_data() * np.float32(factor)
            rounding.input(position).replace_source_output(ops.constant(value.astype(np.float32)).output(0))

    return change


def _levels(model: Any, rounding: Any) -> None:
    from openvino import opset13 as ops

    inputs = [rounding.input_value(position) for position in range(5)]
    _replace(rounding, ops.fake_quantize(*inputs, levels=16))


def _without(model: Any, rounding: Any) -> None:
    _replace(rounding, rounding.input_value(0).get_node())


def _scaled(model: Any, rounding: Any) -> None:
    """A small fault of the graph behind a rounding: it shows where the roundings are left out."""
    from openvino import opset13 as ops

    users = list(rounding.output(0).get_target_inputs())
    scaled = ops.multiply(rounding, ops.constant(np.float32(1.001))).output(0)
    for user in users:
        user.replace_source_output(scaled)


def _replace(before: Any, after: Any) -> None:
    for user in list(before.output(0).get_target_inputs()):
        user.replace_source_output(after.output(0))


def copy(shop: Workshop, target: str, component: str, options: Options, name: str) -> Path:
    """A copy of the honest quantised artifact of one component, which is converted once."""
    from filelock import FileLock

    from exporter.conversion import convert, make_plan

    label = "-".join(map(str, options.values())).translate(str.maketrans(" '(),", "_____"))
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
    _F("activations-code", "int8 activations: one code of a weight off by one", "unet", MATRIX, "codes",
       _first(_farther), ACTIVATIONS, by_sight=True),
]  # fmt: skip


_R = RangeFault
ROUNDED: list[Fault] = [
    _R("range-wide", "int8 activations: a range × 1.05", "unet", MATRIX, _ends(1.05, 1.05), by_sight=True),
    _R("range-narrow", "int8 activations: a range ÷ 2", "unet", MATRIX, _ends(0.5, 0.5), by_sight=True),
    _R(
        "range-end",
        "int8 activations: the upper end of a range × 0.9",
        "unet",
        MATRIX,
        _ends(1, 0.9),
        by_sight=True,
    ),
    _R("range-nan", "int8 activations: an end is NaN", "unet", MATRIX, _ends(1, np.nan), by_sight=True),
    _R(
        "range-scales",
        "int8 activations: another range comes out",
        "unet",
        MATRIX,
        _ends(1, 1, 1.01),
        by_sight=True,
    ),
    _R("range-levels", "int8 activations: 16 numbers for 256", "unet", MATRIX, _levels, by_sight=True),
    _R("range-missing", "int8 activations: one rounding left out", "unet", MATRIX, _without, by_sight=True),
    _R(
        "range-text",
        "int8 activations: a range × 1.05, text encoder",
        "text_encoder",
        TEXT,
        _ends(1.05, 1.05),
        by_sight=True,
    ),
    _R("range-behind", "int8 activations: × 1.001 behind a rounding", "unet", MATRIX, _scaled, by_sight=True),
]


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
        if target == "openvino":
            rounded = {"weights": "int8", "activations": "int8"}
            found += [
                (target, rounded),
                (target, rounded | {"dtype": "float16"}),
                (target, rounded | {"static": (1, 64, 64)}),
                (target, rounded | {"precision_hint": "default"}),
            ]
    return found
