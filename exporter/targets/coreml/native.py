"""Core ML itself, through coremltools: on macOS only. Written against coremltools 9's documentation.

Off a Mac nothing here computes; `tests/targets/coreml/test_native.py` holds the calls against coremltools'
own signatures.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import BackendMissing
from exporter.targets.base import RunOptions
from exporter.targets.coreml.interpreter import Peaks
from exporter.targets.coreml.names import CONTROLNETS, RESOURCES, compiled_name
from exporter.targets.coreml.package import COMPILED, Package

UNITS = {"all": "ALL", "cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "ne": "CPU_AND_NE"}
INTERPRETER = "interpreter"


def has_core_ml() -> bool:
    """Whether this system has Core ML."""
    return sys.platform == "darwin"


class CoreMl:
    """A package in Core ML; the compiled model in `Resources/`, which Swift opens, where there is one.

    Raises:
        BackendMissing: No such device.
    """

    def __init__(self, package: Package, component: str, options: RunOptions) -> None:
        from exporter.targets.coreml.frontend import coremltools

        ct = coremltools()
        units = getattr(ct.ComputeUnit, compute_units(package, options))
        self.outputs = [feature.name for feature in package.spec.description.output]
        compiled = compiled_models(package.path.parent).get(compiled_name(package.path.name) or "")
        chosen = {"compute_units": units, "function_name": package.function}
        self._model: Any = (
            ct.models.CompiledMLModel(str(compiled), **chosen)
            if compiled is not None
            else ct.models.MLModel(str(package.path), **chosen)
        )

    def predict(
        self, inputs: Mapping[str, np.ndarray], *, keep: Sequence[str] = (), peaks: Peaks | None = None
    ) -> dict[str, np.ndarray]:
        """One forward pass.

        Raises:
            RuntimeError: A value between input and output is asked for, or an output is not given.
        """
        if keep or peaks is not None:
            raise RuntimeError("Core ML shows no values between input and output.")
        found = self._model.predict(dict(inputs))
        missing = [name for name in self.outputs if name not in found]
        if missing:
            raise RuntimeError(f"Core ML gives no output {missing[0]!r}.")
        return {name: np.asarray(found[name]) for name in self.outputs}


def compute_units(package: Package, options: RunOptions) -> str:
    """coremltools' name of the units to compute on: those asked for, else those the package notes.

    Raises:
        BackendMissing: Core ML knows none of this name.
    """
    wanted = options.device or package.metadata.get("exporter.compute_units", "all")
    units = UNITS.get(wanted.lower().removeprefix("cpu_and_").removesuffix("_only"))
    if units is None:
        raise BackendMissing(f"Core ML has no device {wanted!r}; it has: {', '.join(UNITS)}.")
    return units


def use_core_ml(options: RunOptions) -> bool:
    """Whether a device asks for Core ML itself.

    Raises:
        BackendMissing: It does, and there is none.
    """
    device = (options.device or "").lower()
    if device == INTERPRETER:
        return False
    if has_core_ml():
        return True
    if device not in ("", "cpu"):
        raise BackendMissing(
            f"There is no Core ML device {options.device!r} on this system.",
            hint="Core ML needs a Mac; here packages run in the interpreter, on the CPU.",
        )
    return False


def compiled_models(root: Path) -> dict[str, Path]:
    """The compiled models of an artifact, by the name that Swift knows them by (`controlnet/Canny`)."""
    folder = root / RESOURCES
    found = [*sorted(folder.glob(f"*{COMPILED}")), *sorted(folder.glob(f"{CONTROLNETS}/*{COMPILED}"))]
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in found if path.is_dir()}


def unchecked(root: Path) -> dict[str, str]:
    """Compiled models that nothing here runs → why, and what to do about it.

    On a Mac those of the artifact's packages are what the runner runs; all others are left.
    """
    known = {compiled_name(path.name) for path in root.glob("*.mlpackage")} if has_core_ml() else set()
    return {
        path.relative_to(root).as_posix(): explain(path.name)
        for name, path in compiled_models(root).items()
        if name not in known
    }


def explain(name: str) -> str:
    """Why a compiled model is not judged here."""
    if has_core_ml():
        return f"{name} is a compiled model of a component that exporter cannot run"
    return (
        f"{name} is a compiled model, which only Core ML itself can run: copy the artifact to a Mac and run "
        "`exporter verify` there; the package it was compiled from is judged here"
    )
