"""Several sizes in one package: a function for each, which share the weights. From iOS 18 and macOS 15 on.

The layout is that of coremltools' `save_multifunction`: every function has inputs and outputs of its own, and
the first is the default, which a client gets that names none, such as Apple's Swift package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter.targets.base import Static
from exporter.targets.coreml.package import MAIN, NOTE_OF, as_stored
from exporter.targets.coreml.rewrite import WEIGHTS, Rewriter

SPEC_18 = 9
"""Specification version of iOS 18, the first with several functions."""


def function_name(static: Static) -> str:
    """Of a size in pixels: `size_512x768`, height first."""
    return f"size_{static[1]}x{static[2]}"


def add_function(path: Path, other: Path, first: str, name: str) -> None:
    """Put the function of one package into another one, and the weights that are not there yet.

    Args:
        path: The package that gets it; changed in place.
        other: A package of one function; left as it is.
        first: What the function of `path` is called from now on, if it has one only.
        name: Of the new one.
    """
    mine, theirs = as_stored(path), as_stored(other)
    spec = mine.spec
    if not spec.description.functions:
        _give_name(spec, first)
    function = theirs.spec.mlProgram.functions[MAIN]
    new = mine.folder / "new.bin"
    with Rewriter(new) as rewriter:
        for described in spec.description.functions:
            for operation in _operations(spec.mlProgram.functions[described.name]):
                rewriter.copy(operation, mine)
        for operation in _operations(function):
            rewriter.copy(operation, theirs)
    spec.mlProgram.functions[name].CopyFrom(function)
    _describe(spec, name, theirs.spec.description)
    _keep_notes(spec, name, theirs.metadata)
    spec.specificationVersion = max(spec.specificationVersion, theirs.spec.specificationVersion, SPEC_18)
    new.replace(mine.folder / WEIGHTS)
    (mine.folder / "model.mlmodel").write_bytes(spec.SerializeToString(deterministic=True))


def _operations(function: Any) -> Any:
    return function.block_specializations[function.opset].operations


def _give_name(spec: Any, name: str) -> None:
    """The only function becomes the default of several."""
    functions, description = spec.mlProgram.functions, spec.description
    functions[name].CopyFrom(functions[MAIN])
    del functions[MAIN]
    _describe(spec, name, description)
    description.defaultFunctionName = name
    for side in ("input", "output", "state"):
        del getattr(description, side)[:]


def _describe(spec: Any, name: str, description: Any) -> None:
    entry = spec.description.functions.add()
    entry.name = name
    for side in ("input", "output", "state"):
        getattr(entry, side).extend(getattr(description, side))


def _keep_notes(spec: Any, name: str, noted: dict[str, str]) -> None:
    """Of what the export noted about the program, what differs from the default's."""
    notes = spec.description.metadata.userDefined
    for key, note in noted.items():
        if key.startswith("exporter.") and notes.get(key) != note:
            notes[f"{key}{NOTE_OF}{name}"] = note
