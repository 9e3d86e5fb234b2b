"""A Core ML package on disk: its manifest, its specification, and where its weights may lie.

An `.mlpackage` is a folder: `Manifest.json` names the root model (`Data/com.apple.CoreML/model.mlmodel`,
a protobuf) and whatever else belongs to it (`weights/weight.bin`). Everything read here may come from a
stranger, so no path may leave the package.

A package may hold several functions, a size each (`functions.py`). Whoever opens one sees the one asked for,
as if it were alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from exporter.artifact import MAX_NAME
from exporter.errors import ArtifactError

MANIFEST = "Manifest.json"
DATA = "Data"
COMPILED = ".mlmodelc"
MODEL_PATH = "@model_path/"
"""Prefix of weight files in a specification: the folder of the specification itself."""
SCALARS_KEY = "exporter.scalars"
"""Where the export notes scalar constants as they were before they were rounded to float16."""
SPEC_VERSIONS = range(6, 11)
"""ML programs: 6 (iOS 15) to 10 (iOS 26)."""
MAIN = "main"
"""The function of a package that has one."""
NOTE_OF = ":"
"""Between the key of a note and the function that it is about, where that is not the default one."""


@dataclass(frozen=True)
class Functions:
    """What a package of several functions says of them.

    Attributes:
        described: Those with inputs and outputs, in order.
        programs: Those with a program.
        default: The one that a client gets that names none.
    """

    described: tuple[str, ...]
    programs: tuple[str, ...]
    default: str


@dataclass(frozen=True)
class Package:
    """An opened package.

    Attributes:
        path: The folder.
        spec: `coremltools.proto.Model_pb2.Model`; of several functions it shows one, as `main`.
        folder: Of the specification: what `@model_path` stands for.
        function: The name of that one; None where there is only one.
        functions: All of them; None where there is only one.
    """

    path: Path
    spec: Any
    folder: Path
    function: str | None = None
    functions: Functions | None = None

    @property
    def metadata(self) -> dict[str, str]:
        """What the author noted under names of their own."""
        return dict(self.spec.description.metadata.userDefined)

    @property
    def scalars(self) -> dict[str, float]:
        """Scalar constants before rounding, by their names; empty for packages of others."""
        try:
            noted = json.loads(self.metadata.get(SCALARS_KEY, "{}"))
            return {str(name): float(value) for name, value in noted.items()}
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            return {}


def open_package(path: Path, function: str | None = None) -> Package:
    """Read a package's specification; weights are not touched.

    Args:
        function: Of several; None is the default one.

    Raises:
        ArtifactError: It is missing, truncated, of an unknown version, no ML program, or points outside, or
            has no such function.
    """
    package = as_stored(path)
    found = functions_of(package.spec)
    if found is None:
        if function not in (None, *package.spec.mlProgram.functions):
            raise _no_function(path, str(function), package.spec.mlProgram.functions)
        return package
    chosen = found.default if function is None else function
    if found.described.count(chosen) != 1 or chosen not in found.programs:
        raise _no_function(path, chosen, found.described)
    _show(package.spec, chosen)
    return Package(path, package.spec, package.folder, chosen, found)


def as_stored(path: Path) -> Package:
    """A package with its specification as it lies on the disk, all functions in it.

    Raises:
        ArtifactError: As `open_package`.
    """
    if path.suffix == COMPILED:
        raise ArtifactError(
            f"{path.name} is a compiled model, which only Core ML itself can open.",
            hint="Give the .mlpackage it was compiled from.",
        )
    if not path.is_dir():
        raise ArtifactError(
            f"The Core ML package {path.name} is missing.",
            hint="Convert again, or copy the artifact with all of its files.",
        )
    model = _model_file(path)
    return Package(path, read_spec(model), model.parent)


def functions_of(spec: Any) -> Functions | None:
    """The functions of a specification that describes several; None where it has one."""
    described = tuple(function.name for function in spec.description.functions)
    if not described:
        return None
    programs = tuple(sorted(spec.mlProgram.functions))
    return Functions(described, programs, spec.description.defaultFunctionName)


def _no_function(path: Path, name: str, names: Iterable[str]) -> ArtifactError:
    return ArtifactError(f"{path.name} has no function {name!r}; it has: {', '.join(sorted(names))}.")


def _show(spec: Any, name: str) -> None:
    """Turn a specification of several functions into that of one of them, with the notes about it."""
    description, functions = spec.description, spec.mlProgram.functions
    (chosen,) = (function for function in description.functions if function.name == name)
    for side in ("input", "output", "state"):
        del getattr(description, side)[:]
        getattr(description, side).extend(getattr(chosen, side))
    program = type(functions[name])()
    program.CopyFrom(functions[name])
    for each in list(functions):
        del functions[each]
    functions[MAIN].CopyFrom(program)
    del description.functions[:]
    description.defaultFunctionName = ""
    notes = description.metadata.userDefined
    for key in [key for key in notes if NOTE_OF in key]:
        base, _, function = key.rpartition(NOTE_OF)
        if function == name:
            notes[base] = notes[key]
        del notes[key]


def _model_file(path: Path) -> Path:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        entry = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path.name} has no readable {MANIFEST}: {error!r}.") from error
    model = inside(path / DATA, str(entry), f"{path.name}: the manifest's root model")
    if not model.is_file():
        raise ArtifactError(
            f"{path.name} has no {entry}, which its manifest names: the package is truncated."
        )
    return model


def read_spec(path: Path) -> Any:
    """
    Raises:
        ArtifactError: Not a Core ML specification, or one that cannot be run here.
    """
    from google.protobuf.message import DecodeError

    from exporter.targets.coreml.frontend import coremltools

    coremltools()
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model()
    try:
        spec.ParseFromString(path.read_bytes())
    except (DecodeError, OSError) as error:
        raise ArtifactError(f"{path.name} is not a Core ML model, or is cut short: {error}.") from error
    version = spec.specificationVersion
    if version not in SPEC_VERSIONS:
        raise ArtifactError(
            f"{path.name} has specification version {version}; "
            f"{SPEC_VERSIONS[0]} to {SPEC_VERSIONS[-1]} can be read."
        )
    kind = spec.WhichOneof("Type")
    if kind != "mlProgram":
        raise ArtifactError(f"{path.name} is a Core ML {kind or 'model without content'}, not an ML program.")
    return spec


def weight_file(package: Package, name: str) -> Path:
    """The file of a weight as the specification names it.

    Raises:
        ArtifactError: The path leaves the package, or there is no such file.
    """
    if not name.startswith(MODEL_PATH):
        raise ArtifactError(
            f"{package.path.name} keeps weights outside the package ({name!r}); refused.",
            hint="Such a file reads whatever it points at; do not use it.",
        )
    path = inside(package.folder, name.removeprefix(MODEL_PATH), f"{package.path.name}: a weight file")
    if not path.is_file():
        raise ArtifactError(
            f"{package.path.name}: the weight file {path.name} is missing.",
            hint="Copy the artifact with all of its files, or convert again.",
        )
    return path


def inside(folder: Path, relative: str, what: str) -> Path:
    """`folder / relative`, if it stays there, links included.

    Raises:
        ArtifactError: It does not.
    """
    pure = PurePosixPath(relative)
    bad = not relative or pure.is_absolute() or ".." in pure.parts or "\\" in relative or ":" in relative
    bad = bad or not relative.isprintable() or max(map(len, pure.parts), default=0) > MAX_NAME
    path = folder / relative
    if bad or not path.resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(
            f"{what} lies outside the package ({relative!r}); refused.",
            hint="Such a file reads whatever it points at; do not use it.",
        )
    return path
