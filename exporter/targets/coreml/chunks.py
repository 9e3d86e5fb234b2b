"""The UNet as two packages of about the same size, for devices that cannot load it whole.

Names, the place of the cut and the float32 boundary are those of apple/ml-stable-diffusion (commit e12202c):
`python_coreml_stable_diffusion/chunk_mlprogram.py`; the Swift package runs one after the other
(`Array<ManagedMLModel>.predictions`), handing on what the first gives beside what it was given itself.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import UnsupportedError
from exporter.targets.coreml.interpreter.values import type_of
from exporter.targets.coreml.package import Package, open_package
from exporter.targets.coreml.rewrite import WEIGHTS, Rewriter, set_type, stored_bytes, text

PARTS = ("_chunk1", "_chunk2")
CARRIED = "_carried"
"""Ending of the values that the first package hands to the second."""
FLOAT32 = 65568
"""`ArrayFeatureType.ArrayDataType`."""
HALF_TYPE = "float16"


@dataclass(frozen=True)
class Cut:
    """Where a program is cut.

    Attributes:
        last: Number of the last operation of the first part.
        carried: Values that the first part makes and the second reads: (name, dtype, shape).
    """

    last: int
    carried: tuple[tuple[str, str, tuple[int, ...]], ...]


def part_name(package: str, part: str) -> str:
    """`X_unet.mlpackage` → `X_unet_chunk1.mlpackage`."""
    return f"{package.removesuffix('.mlpackage')}{part}.mlpackage"


def second_of(first: Path) -> Path | None:
    """The second package of a pair, by the first one's name; None where the name is not a first one's."""
    stem = first.name.removesuffix(".mlpackage")
    if not stem.endswith(PARTS[0]):
        return None
    return first.with_name(f"{stem.removesuffix(PARTS[0])}{PARTS[1]}.mlpackage")


def split(path: Path) -> tuple[Path, Path]:
    """Replace a package by two, beside it.

    Args:
        path: The `.mlpackage`; it is removed.

    Returns:
        The two packages.

    Raises:
        UnsupportedError: There is no place to cut.
    """
    from exporter.targets.coreml.frontend import name_items

    cut = place(open_package(path))
    made = []
    for part in PARTS:
        target = path.with_name(part_name(path.name, part))
        shutil.rmtree(target, ignore_errors=True)
        (target / "Data/com.apple.CoreML/weights").mkdir(parents=True)
        shutil.copyfile(path / "Manifest.json", target / "Manifest.json")
        package = open_package(path)
        spec = package.spec
        if part == PARTS[0]:
            _keep_first(spec, cut)
        else:
            _keep_second(spec, cut)
        with Rewriter(target / package.folder.relative_to(path) / WEIGHTS) as rewriter:
            for op in _block(spec).operations:
                rewriter.copy(op, package)
        model = target / package.folder.relative_to(path) / "model.mlmodel"
        model.write_bytes(spec.SerializeToString(deterministic=True))
        name_items(target / "Manifest.json")
        made.append(target)
    shutil.rmtree(path)
    return made[0], made[1]


def place(package: Package) -> Cut:
    """The first operation behind which half of the weights' bytes are read, and that gives one value, read
    once: `_get_op_idx_split_location` of Apple's, with a weight counted where it is first read.

    Raises:
        UnsupportedError: There is none before the last operation.
    """
    operations = list(_block(package.spec).operations)
    sizes = {op.outputs[0].name: _weight_bytes(op) for op in operations if _is_constant(op)}
    half = sum(sizes.values()) / 2
    uses: dict[str, int] = {}
    for op in operations:
        for name in reads(op):
            uses[name] = uses.get(name, 0) + 1
    seen = 0
    for number, op in enumerate(operations[:-1]):
        if _is_constant(op):
            continue
        for name in reads(op):
            seen += sizes.pop(name, 0)
        if seen > half and len(op.outputs) == 1 and uses.get(op.outputs[0].name) == 1:
            cut = Cut(number, tuple(_carried(operations, number)))
            if cut.carried:
                return cut
    raise UnsupportedError(
        f"{package.path.name} has no place where it could be cut in two.", hint="Convert without --chunk."
    )


def _carried(operations: Sequence[Any], last: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    read_later = {name for op in operations[last + 1 :] for name in reads(op)}
    for op in operations[: last + 1]:
        for output in op.outputs:
            if _is_constant(op) or output.name not in read_later:
                continue
            found = type_of(output.type)
            if found is None or found[0] not in (HALF_TYPE, "float32"):
                raise UnsupportedError(
                    f"The cut would hand on {output.name!r}, which is no floating-point tensor."
                )
            yield output.name, found[0], tuple(int(size or 0) for size in found[1])


def reads(op: Any) -> Iterator[str]:
    """Names of the values an operation reads."""
    for argument in op.inputs.values():
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "name":
                yield binding.name


def _is_constant(op: Any) -> bool:
    return op.type == "const" or op.type.startswith("constexpr_")


def _weight_bytes(op: Any) -> int:
    """Bytes on disk, about: codes and tables of a compressed weight."""
    if op.type == "const":
        return stored_bytes(op.outputs[0].type)
    values = [*op.attributes.values(), *(b.value for a in op.inputs.values() for b in a.arguments)]
    return sum(stored_bytes(value.type) for value in values)


def _block(spec: Any) -> Any:
    function = spec.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


def _keep_first(spec: Any, cut: Cut) -> None:
    """The operations up to the cut; what they hand on are the outputs, as float32."""
    block = _block(spec)
    kept = list(block.operations)[: cut.last + 1]
    outputs = []
    for name, _, shape in cut.carried:
        kept += _cast(name, name + CARRIED, "float32", shape)
        outputs.append((name + CARRIED, shape))
    _replace(spec, _needed(kept, [name for name, _ in outputs]), inputs=(), outputs=outputs)


def _keep_second(spec: Any, cut: Cut) -> None:
    """The operations behind the cut; what was handed on are inputs, as float32."""
    block = _block(spec)
    everything = list(block.operations)
    kept = []
    inputs = []
    for name, dtype, shape in cut.carried:
        kept += _cast(name + CARRIED, name, dtype, shape)
        inputs.append((name + CARRIED, shape))
    kept += [op for op in everything[: cut.last + 1] if _is_constant(op)] + everything[cut.last + 1 :]
    _replace(spec, _needed(kept, list(block.outputs)), inputs=inputs, outputs=None)


def _cast(source: str, result: str, after: str, shape: tuple[int, ...]) -> list[Any]:
    """Operations that give a value another dtype: the cast and its constant (float32 to itself copies)."""
    from coremltools.proto import MIL_pb2

    kind = MIL_pb2.Operation(type="const")
    kind.attributes["name"].CopyFrom(text(f"{result}_dtype"))
    kind.attributes["val"].CopyFrom(text({"float32": "fp32", HALF_TYPE: "fp16"}[after]))
    output = kind.outputs.add()
    output.name = f"{result}_dtype"
    set_type(output.type.tensorType, "string", ())
    cast = MIL_pb2.Operation(type="cast")
    cast.attributes["name"].CopyFrom(text(result))
    cast.inputs["x"].arguments.add().name = source
    cast.inputs["dtype"].arguments.add().name = f"{result}_dtype"
    output = cast.outputs.add()
    output.name = result
    set_type(output.type.tensorType, after, shape)
    return [kind, cast]


def _needed(operations: Sequence[Any], outputs: Sequence[str]) -> list[Any]:
    """Those that an output depends on, in order."""
    wanted = set(outputs)
    kept = []
    for op in reversed(operations):
        if any(output.name in wanted for output in op.outputs):
            wanted.update(reads(op))
            kept.append(op)
    return kept[::-1]


def _replace(
    spec: Any,
    operations: Sequence[Any],
    inputs: Sequence[tuple[str, tuple[int, ...]]],
    outputs: Sequence[tuple[str, tuple[int, ...]]] | None,
) -> None:
    """Put other operations into a specification, with the inputs that they read and their outputs.

    Args:
        inputs: Further ones, float32.
        outputs: Float32; None leaves those there are.
    """
    function, block = spec.mlProgram.functions["main"], _block(spec)
    kept = [_copy(op) for op in operations]
    read = {name for op in kept for name in reads(op)}
    for name in [value.name for value in function.inputs]:
        if name not in read:
            _remove(function.inputs, name)
            _remove(spec.description.input, name)
    for name, shape in inputs:
        value = function.inputs.add()
        value.name = name
        set_type(value.type.tensorType, "float32", shape)
        _declare(spec.description.input.add(), name, shape, "Of the first chunk.")
    if outputs is not None:
        del spec.description.output[:]
        del block.outputs[:]
        for name, shape in outputs:
            block.outputs.append(name)
            _declare(spec.description.output.add(), name, shape, "For the second chunk.")
    del block.operations[:]
    block.operations.extend(kept)
    made = {output.name for op in kept for output in op.outputs}
    _keep_notes(spec.description.metadata.userDefined, made)


def _copy(op: Any) -> Any:
    from coremltools.proto import MIL_pb2

    result = MIL_pb2.Operation()
    result.CopyFrom(op)
    return result


def _remove(values: Any, name: str) -> None:
    for position, value in enumerate(values):
        if value.name == name:
            del values[position]
            return


def _declare(feature: Any, name: str, shape: tuple[int, ...], description: str) -> None:
    feature.name, feature.shortDescription = name, description
    feature.type.multiArrayType.shape.extend(shape)
    feature.type.multiArrayType.dataType = FLOAT32


def _keep_notes(notes: Any, made: set[str]) -> None:
    """Of what the export noted about values, keep what this part makes."""
    for key in [key for key in notes if key.startswith("exporter.")]:
        try:
            noted = json.loads(notes[key])
        except ValueError:
            continue
        if isinstance(noted, dict):
            notes[key] = json.dumps(_of_part(noted, made), separators=(",", ":"))


def _of_part(noted: dict[str, Any], made: set[str]) -> dict[str, Any]:
    """A note maps a value to something, or something to a value (the first of a list) or to values."""
    kept = {}
    for name, value in noted.items():
        if name in made or (isinstance(value, list) and value and value[0] in made):
            kept[name] = value
        elif isinstance(value, list) and any(isinstance(item, str) and item in made for item in value):
            kept[name] = [item for item in value if item in made]
    return kept
