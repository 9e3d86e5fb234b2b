"""A reference interpreter for Core ML packages: any system, no Core ML, op by op in PyTorch.

>>> from exporter.targets import coreml
>>> model = coreml.load("Stable_Diffusion_version_x_vae_decoder.mlpackage")  # doctest: +SKIP
>>> model.predict({"z": latents})["image"]  # doctest: +SKIP

It says what the graph computes. It does not model how the Neural Engine or a GPU compute it, nor what
their compilers refuse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exporter.errors import ArtifactError
from exporter.targets.coreml.interpreter.machine import Mode, Program
from exporter.targets.coreml.interpreter.peaks import Peaks
from exporter.targets.coreml.interpreter.values import Constants
from exporter.targets.coreml.package import MAIN, Package, open_package

ARRAY_TYPES = {65552: "float16", 65568: "float32", 65600: "float64", 131104: "int32", 131080: "int8"}
"""`ArrayFeatureType.ArrayDataType` → numpy dtype name."""

__all__ = ["Feature", "Mode", "Model", "Peaks", "load"]


@dataclass(frozen=True)
class Feature:
    """An input or output as the package declares it: a multi-array.

    Attributes:
        shape: In full for the default size.
        shapes: Every size it may have (enumerated ones; else only `shape`).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]


class Model:
    """A package in the interpreter.

    Attributes:
        inputs / outputs: As the package declares them.
        package: The files.
    """

    def __init__(self, package: Package, mode: Mode) -> None:
        self.package, self.mode = package, mode
        functions = package.spec.mlProgram.functions
        if MAIN not in functions:
            raise ArtifactError(
                f"{package.path.name} has no function {MAIN!r}; it has: {', '.join(sorted(functions))}."
            )
        self.program = Program(functions[MAIN], Constants(package), package.path.name)
        if mode == "unrounded":
            self.program.refine(package.scalars)
        description = package.spec.description
        self.inputs = tuple(_feature(f, package) for f in description.input)
        self.outputs = tuple(_feature(f, package) for f in description.output)
        for feature in self.inputs:
            if feature.name not in self.program.inputs:
                raise ArtifactError(
                    f"{package.path.name} declares an input {feature.name!r} that its program lacks."
                )
        for feature in self.outputs:
            if feature.name not in self.program.outputs:
                raise ArtifactError(
                    f"{package.path.name} declares an output {feature.name!r} that its program lacks."
                )

    def predict(
        self, inputs: Mapping[str, np.ndarray], *, keep: Sequence[str] = (), peaks: Peaks | None = None
    ) -> dict[str, np.ndarray]:
        """One forward pass.

        Args:
            inputs: By name, in the declared dtype and shape (`unrounded` also takes float32 for float16).
            keep: Values of the program to return as well, by their MIL names.
            peaks: Noted there: the largest magnitude of every computed value.

        Raises:
            ValueError: A missing or unknown input, a wrong dtype or shape.
            ArtifactError: The program contradicts itself.
        """
        self._check(inputs)
        tensors = {
            # torch has no read-only tensors: what cannot be written is copied
            name: torch.from_numpy(np.array(value, order="C", copy=None if value.flags.writeable else True))
            for name, value in inputs.items()
        }
        values = self.program.run(tensors, self.mode, keep, peaks)
        result = {f.name: self._array(values[f.name], f) for f in self.outputs}
        return result | {name: values[name].float().numpy() for name in keep if name in values}

    def _array(self, tensor: Any, feature: Feature) -> np.ndarray:
        if not isinstance(tensor, torch.Tensor):
            raise ArtifactError(f"{self.package.path.name}: the output {feature.name!r} is no array.")
        if feature.shape and tuple(tensor.shape) not in feature.shapes:
            raise ArtifactError(
                f"{self.package.path.name}: the output {feature.name!r} is declared {list(feature.shape)}, "
                f"the program gives {list(tensor.shape)}."
            )
        if self.mode == "unrounded" and feature.dtype == "float16":
            return tensor.float().numpy()
        return tensor.to(getattr(torch, feature.dtype)).numpy()

    def _check(self, inputs: Mapping[str, np.ndarray]) -> None:
        declared = {feature.name: feature for feature in self.inputs}
        missing = [name for name in declared if name not in inputs]
        unknown = [name for name in inputs if name not in declared]
        if missing or unknown:
            raise ValueError(f"inputs are {list(declared)}; missing {missing}, unknown {unknown}")
        for name, feature in declared.items():
            value = inputs[name]
            fine = {feature.dtype} | (
                {"float32"} if self.mode == "unrounded" and feature.dtype == "float16" else set()
            )
            if str(value.dtype) not in fine:
                raise ValueError(f"input {name!r} is declared {feature.dtype}, got {value.dtype}")
            if tuple(value.shape) not in feature.shapes:
                allowed = " or ".join(str(list(shape)) for shape in feature.shapes)
                raise ValueError(f"input {name!r} is declared {allowed}, got {list(value.shape)}")


def load(path: str | Path, *, mode: Mode | None = None, function: str | None = None) -> Model:
    """Open a package in the interpreter.

    Args:
        path: An `.mlpackage`.
        mode: `exact`, `emulate` or `unrounded` (see `Program.run`); None is `emulate`, which for a
            float32 package is the same as `exact`.
        function: Of a package with several, a size each (`size_512x768`); None is the default one.

    Raises:
        ArtifactError: It is missing, damaged, points outside itself, or has an operation that is unknown.
    """
    return Model(open_package(Path(path).expanduser(), function), mode or "emulate")


def _feature(proto: Any, package: Package) -> Feature:
    if proto.type.WhichOneof("Type") != "multiArrayType":
        raise ArtifactError(
            f"{package.path.name}: {proto.name!r} is no multi-array, which is all the interpreter takes."
        )
    array = proto.type.multiArrayType
    shape = tuple(int(size) for size in array.shape)
    shapes: tuple[tuple[int, ...], ...] = (shape,)
    if array.WhichOneof("ShapeFlexibility") == "enumeratedShapes":
        shapes = tuple(tuple(int(n) for n in s.shape) for s in array.enumeratedShapes.shapes)
    dtype = ARRAY_TYPES.get(array.dataType)
    if dtype is None:
        raise ArtifactError(f"{package.path.name}: {proto.name!r} has the unknown type {array.dataType}.")
    return Feature(proto.name, dtype, shape, shapes)
