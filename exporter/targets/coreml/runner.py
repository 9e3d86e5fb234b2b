"""Opens a Core ML package and runs it: in the interpreter anywhere, in Core ML itself on macOS."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from exporter.artifact import TensorRecord
from exporter.errors import ArtifactError, BackendMissing, UsageError
from exporter.targets.base import Peak, QuantisedWeight, Runner, RunOptions
from exporter.targets.coreml.chained import Chained, ChainedCoreMl, packages
from exporter.targets.coreml.interpreter import Feature, Mode, Model
from exporter.targets.coreml.interpreter.peaks import LARGEST_HALF, Peaks
from exporter.targets.coreml.layout import (
    INPUTS,
    OUTPUTS_KEY,
    SCALE,
    Binding,
    input_bindings,
    kind_of,
    our_shape,
    output_bindings,
    to_apple,
    to_ours,
)
from exporter.targets.coreml.native import CoreMl, use_core_ml
from exporter.targets.coreml.notes import MODULES_KEY, OWNERS_KEY, VERSION_KEY
from exporter.targets.coreml.package import COMPILED, Package


class Backend(Protocol):
    """Whatever computes a package."""

    def predict(
        self, inputs: Mapping[str, np.ndarray], *, keep: Sequence[str] = (), peaks: Peaks | None = None
    ) -> dict[str, np.ndarray]: ...


class CoremlRunner(Runner):
    """A component in the interpreter or in Core ML, under the component's own names and shapes.

    Apple's `encoder_hidden_states` is (2, width, 1, tokens), ours (2, tokens, width); Apple's `timestep` of a
    UNet holds a number for each row, ours is a scalar; Apple's `input_ids` are floats; a ControlNet's
    `conditioning_scale` multiplies what the package gives. Nothing else is changed,
    and what is passed on is checked against what the file declares.

    Args:
        path: The `.mlpackage`.
        component: Its name, which says what its tensors mean.
        options: With `f32`, a float16 package is computed in float32 without rounding: the graph without
            its precision. `f16` and `default` round every value to its declared dtype. On macOS these
            two run Core ML itself, unless the device is `interpreter`.
        function: Of a package of several sizes; None is the default one.

    Raises:
        ArtifactError: The package is missing, damaged, or has an operation that is unknown.
        BackendMissing: The device is not here, or the file is a compiled model.
        UsageError: Core ML has no such precision.
    """

    def __init__(self, path: Path, component: str, options: RunOptions, function: str | None = None) -> None:
        if kind_of(component) not in INPUTS:
            raise ArtifactError(f"{path.name}: Apple's runners know no component {component!r}.")
        if options.precision_hint == "bf16":
            raise UsageError("Core ML computes in float16 or float32, not in bfloat16.")
        if path.suffix == COMPILED:
            raise BackendMissing(
                f"{path.name} is a compiled model, which only Core ML itself can open.",
                hint="Give the .mlpackage it was compiled from.",
            )
        self.path, self.component = path, component
        parts = packages(path, function)
        package = parts[0]
        stored = weight_dtype(package)
        half = stored == "float16" and options.precision_hint != "f32"
        self.precision = "float16" if half else "float32"
        self.weights = stored
        self.only_rounded = VERSION_KEY in package.metadata
        native = use_core_ml(options)
        mode: Mode = "emulate" if half else "unrounded" if stored == "float16" else "exact"
        self._parts = parts
        models = [Model(part, mode) for part in parts]
        self._model: Model | Chained = models[0] if len(models) == 1 else Chained(*models)
        self._backend: Backend = self._model
        if native and (half or stored == "float32"):
            self._backend = (
                CoreMl(package, component, options)
                if len(parts) == 1
                else ChainedCoreMl(parts, component, options)
            )
        self._modules: dict[str, tuple[str, str]] = {}
        self._owners: dict[str, str] = {}
        for part in parts:
            self._modules |= module_map(part, self._model)
            self._owners |= owner_map(part)
        self._peaks = Peaks() if options.peaks else None
        self._inputs = bound(
            self._model.inputs, input_bindings(component, [f.name for f in self._model.inputs])
        )
        self._outputs = bound(self._model.outputs, noted_outputs(parts[-1], component))
        self.inputs = tuple(record(f, b, is_input=True) for f, b in self._inputs)
        if kind_of(component) == "controlnet":
            self.inputs += (TensorRecord(name=SCALE, dtype="float32", dims=[]),)
        self.outputs = tuple(record(f, b, is_input=False) for f, b in self._outputs)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One forward pass.

        When float16 overflows on the way to an output, the operation is named, unless peaks are noted:
        then they tell.
        """
        given, scale = self._apple(inputs), inputs.get(SCALE)
        if self._peaks is not None and self._backend is self._model:
            return self._ours(self._model.predict(given, peaks=self._peaks), scale)
        outputs = self._backend.predict(given)
        if self._peaks is not None:
            self._model.predict(given, peaks=self._peaks)
        elif self._model.mode == "emulate" and not all(np.isfinite(a).all() for a in outputs.values()):
            self._name_overflow(given)
        return self._ours(outputs, scale)

    def _name_overflow(self, given: Mapping[str, np.ndarray]) -> None:
        """
        Raises:
            RuntimeError: A finite value does not fit float16.
        """
        peaks = Peaks()
        self._model.predict(given, peaks=peaks)
        found = peaks.overflowing()
        if found and np.isfinite(found[0].peak):
            first = found[0]
            module = self._owners.get(first.value)
            raise RuntimeError(
                f"float16 overflows: {first.operation} {first.value!r}{f' in {module}' if module else ''} "
                f"reaches {first.peak:.3g}, float16 holds {LARGEST_HALF:.0f}; convert with --dtype float32"
            )

    def module_names(self) -> list[str]:
        return list(self._modules)

    def intermediates(
        self, inputs: Mapping[str, np.ndarray], modules: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """The output of each named module, always from the interpreter.

        Raises:
            ValueError: A name that is not in `module_names()`.
        """
        self.check_modules(modules)
        values = self._model.predict(self._apple(inputs), keep=[self._modules[name][0] for name in modules])
        result = {}
        for name in modules:
            value, layout = self._modules[name]
            array = values[value]
            result[name] = array.squeeze(2).swapaxes(1, 2) if layout == "bc1s" else array
        return result

    def peaks(self) -> list[Peak]:
        """Always from the interpreter, also where Core ML gives the outputs."""
        noted = self._peaks.values.values() if self._peaks is not None else ()
        return [
            Peak(
                value=found.value,
                operation=found.operation,
                module=self._owners.get(found.value),
                peak=found.peak,
                limit=LARGEST_HALF if found.dtype == "float16" else None,
            )
            for found in noted
        ]

    def quantised(self) -> Iterator[QuantisedWeight]:
        from exporter.targets.coreml.quantised import quantised

        return quantised(self._parts)

    def client_faults(self) -> list[str]:
        from exporter.targets.coreml.lint import lint

        return lint(self._parts[0], self.component, *self._parts[1:])

    def _apple(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Checked, and under Apple's names."""
        declared = {spec.name: spec for spec in self.inputs}
        scale = inputs.get(SCALE)
        if SCALE in declared and scale is not None and (scale.shape, scale.dtype) != ((), np.float32):
            raise ValueError(f"{SCALE} is one float32 number, got {scale.dtype} {list(scale.shape)}")
        missing = [name for name in declared if name not in inputs]
        unknown = [name for name in inputs if name not in declared]
        if missing or unknown:
            raise ValueError(f"inputs are {list(declared)}; missing {missing}, unknown {unknown}")
        result = {}
        for feature, binding in self._inputs:
            name = binding.ours if binding else feature.name
            spec, array = declared[name], inputs[name]
            if str(array.dtype) != spec.dtype:
                raise ValueError(f"input {name!r} is declared {spec.dtype}, got {array.dtype}")
            if list(array.shape) != spec.dims:
                raise RuntimeError(f"input {name!r} is baked as {spec.dims}, got {list(array.shape)}")
            shaped = to_apple(binding, array, feature.shape) if binding else array
            if binding is not None and binding.exact and feature.dtype == "float16":
                refuse_rounded(name, array)
            wanted = (
                "float32" if self.precision == "float32" and feature.dtype == "float16" else feature.dtype
            )
            result[feature.name] = np.ascontiguousarray(shaped).astype(wanted, copy=False)
        return result

    def _ours(self, outputs: Mapping[str, np.ndarray], scale: np.ndarray | None) -> dict[str, np.ndarray]:
        """Under our names; a ControlNet's times its scale, as diffusers multiplies them."""
        return {
            binding.ours if binding else feature.name: to_ours(binding, outputs[feature.name])
            if scale is None
            else outputs[feature.name] * scale
            for feature, binding in self._outputs
        }


def refuse_rounded(name: str, array: np.ndarray) -> None:
    """
    Raises:
        ValueError: A number that must arrive as it is does not fit float16.
    """
    held = array.astype(np.float16).astype(array.dtype)
    if not np.array_equal(held, array):
        odd = array[held != array][0]
        raise ValueError(f"{name} {odd:g} cannot be given as float16, which Apple's runners use")


def weight_dtype(package: Package) -> str:
    """float16 if most of the weights' numbers are, else float32; compressed ones count by their scale."""
    counts = {"float16": 0, "float32": 0}
    from exporter.targets.coreml.interpreter.values import type_of

    for function in package.spec.mlProgram.functions.values():
        for op in function.block_specializations[function.opset].operations:
            if op.type == "const" or op.type.startswith("constexpr"):
                found = type_of(op.outputs[0].type)
                if found is not None and found[0] in counts:
                    counts[found[0]] += int(np.prod([size or 1 for size in found[1]], dtype=np.int64))
    return "float16" if counts["float16"] > counts["float32"] else "float32"


def module_map(package: Package, model: Model | Chained) -> dict[str, tuple[str, str]]:
    """Module path → (value, layout), as the export noted it, for values that the program makes."""
    try:
        noted: Any = json.loads(package.metadata.get(MODULES_KEY, "{}"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(noted, dict):
        return {}
    made = {name for step in model.program.steps for name, _, _ in step.outputs}
    return {
        path: (entry[0], entry[1])
        for path, entry in noted.items()
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and entry[0] in made
    }


def owner_map(package: Package) -> dict[str, str]:
    """Value → the module in whose code it is computed, as the export noted it."""
    try:
        noted: Any = json.loads(package.metadata.get(OWNERS_KEY, "{}"))
        return {str(value): str(path) for path, values in noted.items() for value in values}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}


def noted_outputs(package: Package, component: str) -> tuple[Binding, ...]:
    """The outputs' two names; where they depend on the model, as the export noted them."""
    try:
        noted: Any = json.loads(package.metadata.get(OUTPUTS_KEY, "{}"))
    except (ValueError, RecursionError):
        noted = {}
    if not isinstance(noted, dict) or not noted:
        return output_bindings(component, [feature.name for feature in package.spec.description.output])
    return tuple(Binding(str(name), str(ours)) for name, ours in noted.items())


def bound(features: Sequence[Feature], bindings: Sequence[Binding]) -> list[tuple[Feature, Binding | None]]:
    """Every feature of the file with what it is called here; in the component's order where all are known."""
    by_name = {binding.name: binding for binding in bindings}
    order = {name: place for place, name in enumerate(by_name)}
    ordered = sorted(features, key=lambda feature: order.get(feature.name, len(order)))
    return [(feature, by_name.get(feature.name)) for feature in ordered]


def record(feature: Feature, binding: Binding | None, *, is_input: bool) -> TensorRecord:
    """A feature as the component would declare it; what has no counterpart stays as the file has it."""
    if binding is None:
        return TensorRecord(name=feature.name, dtype=feature.dtype, dims=list(feature.shape))
    dtype = feature.dtype
    if is_input and dtype in ("float16", "float32"):
        dtype = "int64" if binding.name == "input_ids" else "float32"
    return TensorRecord(name=binding.ours, dtype=dtype, dims=list(our_shape(binding, feature.shape)))
