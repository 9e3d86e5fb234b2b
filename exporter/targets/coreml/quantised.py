"""The compressed weights of a package, read back from the disk as the interpreter computes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from exporter.errors import ArtifactError
from exporter.targets.base import QuantisedWeight
from exporter.targets.coreml.compression import COMPRESSED_KEY
from exporter.targets.coreml.interpreter.machine import OPERATIONS
from exporter.targets.coreml.interpreter.values import Constants
from exporter.targets.coreml.package import Package

CODES = ("data", "quantized_data")
"""Operands that hold integers, of the two forms."""


def quantised(packages: Sequence[Package]) -> Iterator[QuantisedWeight]:
    """Every compressed weight under the names the export noted, one at a time.

    Raises:
        ArtifactError: An operation's numbers cannot be read, or it unpacks what another one unpacked.
    """
    for package in packages:
        noted = _noted(package)
        constants = Constants(package)
        function = package.spec.mlProgram.functions["main"]
        for op in function.block_specializations[function.opset].operations:
            if op.type.startswith("constexpr_"):
                name = op.outputs[0].name
                given = _operands(op, constants, f"{package.path.name}: {op.type} {name!r}")
                values = OPERATIONS[op.type](**given).float()
                step, edge, palette = _steps(given, values)
                for stored, shape in noted.get(name, {name: list(values.shape)}).items():
                    yield QuantisedWeight(
                        stored,
                        values.numpy().reshape(shape),
                        step.reshape(shape),
                        edge.reshape(shape),
                        palette,
                    )


def _noted(package: Package) -> dict[str, dict[str, list[int]]]:
    try:
        noted: Any = json.loads(package.metadata.get(COMPRESSED_KEY, "{}"))
        return {str(name): dict(each["weights"]) for name, each in noted.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _operands(op: Any, constants: Constants, where: str) -> dict[str, Any]:
    """Constants in an operation, floating ones as float32: what `Program.run` computes with."""
    given = {name: constants.read(v, where) for name, v in op.attributes.items() if name != "name"}
    for name, argument in op.inputs.items():
        for binding in argument.arguments:
            if binding.WhichOneof("binding") != "value":
                raise ArtifactError(f"{where} unpacks another operation's result, which is not judged here.")
            given[name] = constants.read(binding.value, where)
    return {
        name: value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in given.items()
    }


def _steps(given: dict[str, Any], values: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Distance between neighbouring codes and whether a code is the last of its range; of a palette the
    palette itself instead."""
    nothing = np.zeros(values.shape, np.float32)
    if "lut" in given:
        return nothing, nothing.astype(bool), np.sort(given["lut"].numpy().reshape(-1))
    codes = next(given[name] for name in CODES if name in given)
    scale = given["scale"].abs()
    if "axis" in given and scale.dim() == 1:
        shape = [1] * codes.dim()
        shape[int(given["axis"])] = -1
        scale = scale.reshape(shape)
    for axis, size in enumerate(codes.shape if scale.dim() else ()):
        if scale.shape[axis] not in (1, size):
            scale = scale.repeat_interleave(size // scale.shape[axis], dim=axis)
    step = scale.expand(codes.shape).numpy()
    top = int(codes.abs().max()) if codes.numel() else 0
    limit = 7 if top <= 7 else 127
    return step, (codes.abs() >= limit).numpy(), None
