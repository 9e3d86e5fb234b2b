"""Stores a package's weights in fewer bits: which ones, how, and what is noted about it.

A weight is compressed when it is a parameter of the checkpoint with at least `LEAST` numbers that a
convolution or a matrix product reads. Embedding tables stay as they are (so does Apple's converter: a
`gather` from a compressed table unpacks all of it).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.targets.coreml.interpreter.values import Constants, type_of
from exporter.targets.coreml.package import open_package
from exporter.targets.coreml.palettes import Integers, Palette, block_of, packed, palettise, to_integers
from exporter.targets.coreml.rewrite import WEIGHTS, Rewriter

if TYPE_CHECKING:
    from exporter.architectures.base import Component
    from exporter.progress import Progress

LEAST = 2048
"""Numbers of a weight, as coremltools has it: below that the table costs what the codes save."""
READERS = frozenset(("conv", "linear", "matmul", "conv_transpose"))
MIXED = "palette-mixed"
COMPRESSED_KEY = "exporter.compressed"
"""In the package: value of a compressed weight → `how`, and `weights`: stored name → shape, of those it holds
(more than one where they are equal)."""
BLOCKS_OPSET = ("CoreML8", "CoreML9")
"""Opsets from iOS 18 on, whose operators hold tensors of sub-byte integers and work in blocks."""


@dataclass(frozen=True)
class How:
    """How one weight is stored.

    Attributes:
        kind: `palette` or `int`.
        bits: Of a code.
    """

    kind: str
    bits: int

    @property
    def label(self) -> str:
        """`palette6`, `int8`."""
        return f"{self.kind}{self.bits}"

    @classmethod
    def of(cls, label: str) -> How:
        """The opposite of `label`."""
        kind = label.rstrip("0123456789")
        return cls(kind, int(label.removeprefix(kind)))


@dataclass(frozen=True)
class Smaller:
    """What was compressed.

    Attributes:
        weights: The component's key of each weight → how it is stored.
        details: For the manifest (`described`).
    """

    weights: dict[str, How]
    details: dict[str, Any]


def encode(values: np.ndarray, how: How, dtype: str) -> Palette | Integers:
    """A weight in fewer bits.

    Args:
        values: float32 (output channels, input channels, …).
        dtype: Of what stays a floating-point number.
    """
    if how.kind == "palette":
        return palettise(values, how.bits, dtype)
    return to_integers(values, "int8" if how.bits == 8 else "int4", dtype)


def compressible(path: Path, component: Component, dtype: str) -> dict[str, list[str]]:
    """Constant of a saved package → the keys of the component's weights it holds, if it may be compressed.

    They are known by their bytes: a pass that changed a weight on its way leaves it as it is.
    """
    package = open_package(path)
    known: dict[bytes, list[str]] = {}
    for name, stored in component.reference_weights.items():
        if _is_large(stored.shape):
            digest = _digest(stored.load().float().numpy().astype(dtype))
            known.setdefault(digest, []).append(name)
            stored.release()
    block = _block(package.spec)
    read_by: dict[str, set[str]] = {}
    for op in block.operations:
        for argument in op.inputs.values():
            for binding in argument.arguments:
                read_by.setdefault(binding.name, set()).add(op.type)
    constants = Constants(package)
    found = {}
    for op in block.operations:
        kind = type_of(op.outputs[0].type) if op.type == "const" else None
        if kind is None or kind[0] != dtype or not _is_large(tuple(size or 0 for size in kind[1])):
            continue
        name = op.outputs[0].name
        if not read_by.get(name) or not read_by[name] <= READERS:
            continue
        names = known.get(_digest(constants.read(op.attributes["val"], name).numpy()))
        if names:
            found[name] = names
    return found


def _is_large(shape: tuple[int, ...]) -> bool:
    return len(shape) >= 2 and int(np.prod(shape, dtype=np.int64)) >= LEAST


def _digest(array: np.ndarray) -> bytes:
    raw: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.blake2b(raw, digest_size=16).digest()


def _block(spec: Any) -> Any:
    function = spec.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


def compress(
    path: Path,
    component: Component,
    chosen: Mapping[str, How],
    holds: Mapping[str, list[str]],
    dtype: str,
    progress: Progress,
) -> None:
    """Write a saved package anew with some of its weights in fewer bits.

    Args:
        path: The `.mlpackage`; changed in place.
        chosen: Constant → how to store it.
        holds: From `compressible`.
        dtype: Of the package's weights.

    Raises:
        CheckpointError: A weight cannot be compressed.
    """
    package = open_package(path)
    stored = component.reference_weights
    function = package.spec.mlProgram.functions["main"]
    new = package.folder / "new.bin"
    progress.start(f"{component.name}: compressing", len(chosen))
    done = 0
    with Rewriter(new) as rewriter:
        for op in _block(package.spec).operations:
            how = chosen.get(op.outputs[0].name) if op.type == "const" else None
            if how is None:
                rewriter.copy(op, package)
                continue
            weight = stored[holds[op.outputs[0].name][0]]
            shape = tuple(int(size or 0) for size in (type_of(op.outputs[0].type) or ("", ()))[1])
            values = weight.load().float().numpy().reshape(shape)
            store(op, encode(values, how, dtype), dtype, function.opset in BLOCKS_OPSET, rewriter)
            weight.release()
            done += 1
            progress.update(done)
    new.replace(package.folder / WEIGHTS)
    noted = {
        name: {
            "how": how.label,
            "weights": {stored[key].name: list(stored[key].shape) for key in holds[name]},
        }
        for name, how in chosen.items()
    }
    package.spec.description.metadata.userDefined[COMPRESSED_KEY] = json.dumps(noted, separators=(",", ":"))
    (package.folder / "model.mlmodel").write_bytes(package.spec.SerializeToString(deterministic=True))
    progress.done()


def store(op: Any, small: Palette | Integers, dtype: str, blocks: bool, rewriter: Rewriter) -> None:
    """Turn a `const` operation into the one that unpacks a compressed weight; its value keeps its name.

    Args:
        blocks: Whether the program's opset has the forms of iOS 18.
    """
    shape = small.codes.shape
    integer = f"{'uint' if isinstance(small, Palette) else 'int'}{small.bits}"
    codes = packed(small.codes, small.bits)
    if isinstance(small, Palette):
        op.type = "constexpr_lut_to_dense"
        table = small.table.reshape((1,) * len(shape) + (-1, 1)) if blocks else small.table
        given = {
            "indices": rewriter.value(codes, integer, shape) if blocks else rewriter.value(codes, "uint8"),
            "lut": rewriter.value(table, dtype),
        }
        if not blocks:
            given["shape"] = rewriter.value(np.array(shape, np.uint32), "uint32")
    elif blocks:
        op.type = "constexpr_blockwise_shift_scale"
        given = {
            "data": rewriter.value(codes, integer, shape),
            "scale": rewriter.value(small.scales, dtype),
        }
    else:
        op.type = "constexpr_affine_dequantize"
        rows = small.scales.reshape(-1)
        given = {
            "quantized_data": rewriter.value(small.codes, integer),
            "zero_point": rewriter.value(np.zeros(rows.shape, np.int8), integer),
            "scale": rewriter.value(rows, dtype),
            "axis": rewriter.value(np.array(0, np.int32), "int32"),
        }
    del op.attributes["val"]
    for name, value in given.items():
        if blocks:
            op.inputs[name].arguments.add().value.CopyFrom(value)
        else:
            op.attributes[name].CopyFrom(value)


def described(
    scheme: str, chosen: Mapping[str, How], holds: Mapping[str, list[str]], component: Component, dtype: str
) -> dict[str, Any]:
    """For the manifest: what is compressed and how.

    Args:
        scheme: As it was asked for: `palette6`, `palette-mixed4.5`, `int8`.

    Returns:
        JSON values: `scheme`, `rest` (dtype of what is not compressed), `weights` (stored name → how),
        `counts` (how → weights), `average_bits` (of a code, over all compressed numbers).
    """
    stored = component.reference_weights
    sizes = numbers_of(component, holds)
    total = sum(sizes[name] for name in chosen)
    bits = sum(how.bits * sizes[name] for name, how in chosen.items())
    weights = {
        stored[key].name: scheme_of(how, stored[key].shape)
        for name, how in chosen.items()
        for key in holds[name]
    }
    return {
        "scheme": {"int8": "int8_sym", "int4": "int4_narrow"}.get(scheme, scheme),
        "rest": dtype,
        "weights": dict(sorted(weights.items())),
        "counts": dict(sorted(Counter(weights.values()).items())),
        "average_bits": round(bits / total, 3) if total else 0.0,
    }


def scheme_of(how: How, shape: tuple[int, ...]) -> str:
    """For the manifest: `palette6`, `int8_sym`, or `int4_narrow_group32`: ±7, a scale for 32 neighbours."""
    if how.kind == "palette":
        return how.label
    if how.bits == 8:
        return "int8_sym"
    numbers = block_of(shape[1]) * int(np.prod(shape[2:], dtype=np.int64))
    return "int4_narrow" if block_of(shape[1]) == shape[1] else f"int4_narrow_group{numbers}"


def numbers_of(component: Component, holds: Mapping[str, list[str]]) -> dict[str, int]:
    """Constant → how many numbers it has."""
    return {name: component.reference_weights[keys[0]].numel for name, keys in holds.items()}
