"""Opens an OpenVINO IR from disk and runs it."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.artifact import ComponentRecord, TensorRecord
from exporter.errors import ArtifactError, UsageError
from exporter.targets.base import QuantisedWeight, RoundedActivation, Runner, RunOptions
from exporter.targets.openvino.activations import has_roundings, leave_out, roundings
from exporter.targets.openvino.compiled import device_of, import_blob, require_device
from exporter.targets.openvino.compression import code_constants, quantised
from exporter.targets.openvino.model import plain, read_modules
from exporter.targets.openvino.sharing import weights_of as constants_of

if TYPE_CHECKING:
    import openvino

DTYPES = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "i64": "int64",
    "i32": "int32", "i16": "int16", "i8": "int8", "u8": "uint8", "boolean": "bool",
}  # fmt: skip
PRECISIONS = ("float16", "bfloat16", "float32")
"""From the coarsest to the finest: a model is said to compute in the coarsest that does real work."""
HEAVY = {"Convolution", "MatMul", "FullyConnected", "ScaledDotProductAttention", "Deconvolution", "Subgraph"}
"""Node types of a compiled model that do nearly all of the arithmetic."""


class OpenVinoRunner(Runner):
    """A component compiled by OpenVINO, by default for the CPU under the hint `f32`.

    Args:
        path: `openvino_model.xml`.
        record: The manifest's word, used only for the names of dynamic dims.
        options: Device, hint, threads; a compiled model to open in the place of the file, which then
            gives no modules.

    Raises:
        ArtifactError: The files are missing, damaged or no OpenVINO model.
        BackendMissing: No such device here.
    """

    def __init__(self, path: Path, record: ComponentRecord, options: RunOptions) -> None:
        import openvino

        self._core = openvino.Core()
        self._path = path
        self._device = device_of(options)
        self._settings = compile_settings(options)
        self._compiled: openvino.CompiledModel | None = None
        self._modules: dict[str, str] = {}
        self._watched: dict[str, str] = {}
        if options.compiled is not None:
            require_device(self._core, self._device)
            self._compiled = import_blob(self._core, options.compiled, self._device, self._settings)
            ports: Any = self._compiled
        else:
            ports = self._model = read_model(self._core, path)
            self._modules = read_modules(self._model)
            self.weights = weights_of(self._model)
            if options.exact:
                leave_out(self._model)
            if next(code_constants(self._model), None) is not None:
                # With quantised weights OpenVINO quantises activations too, under any hint: 0.5 % error.
                self.rounds_activations = options.precision_hint != "f32"
                if not self.rounds_activations:
                    self._settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
            self.rounds_activations |= has_roundings(self._model)
        self.inputs = tuple(describe(port, record.inputs) for port in ports.inputs)
        self.outputs = tuple(describe(port, record.outputs) for port in ports.outputs)
        self._watched = {name: self._modules[name] for name in options.watch if name in self._modules}
        if self._watched:
            self._model.add_outputs(sorted(set(self._watched.values())))
        self.precision = precision_of(self.compiled())

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._check(inputs)
        names = [spec.name for spec in self.outputs]
        values = self._infer(self.compiled(), inputs, [*names, *self._watched.values()])
        watched = {path: values[name] for path, name in self._watched.items()}
        return {name: values[name] for name in names} | watched

    def compiled(self) -> openvino.CompiledModel:
        """The model as the device's plugin has it."""
        if self._compiled is None:
            self._compiled = self._compile(self._model)
        return self._compiled

    def module_names(self) -> list[str]:
        return list(self._modules)

    def intermediates(
        self, inputs: Mapping[str, np.ndarray], modules: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """The output of each named module in one run.

        The model is compiled again with the extra outputs, which keeps OpenVINO from fusing across
        them; the first compiled model is freed meanwhile, so that the weights are held once.

        Raises:
            ValueError: A name that is not in `module_names()`.
        """
        self._check(inputs)
        self.check_modules(modules)
        wanted = list(dict.fromkeys(self._modules[name] for name in modules))
        if not wanted:
            return {}
        self._compiled = None
        gc.collect()
        model = self._model.clone()
        present = {name for port in model.outputs for name in port.get_names()}
        extra = [tensor for tensor in wanted if tensor not in present]
        if extra:
            model.add_outputs(extra)
        values = self._infer(self._compile(model), inputs, wanted)
        return {name: values[self._modules[name]] for name in modules}

    def quantised(self) -> Iterator[QuantisedWeight]:
        return quantised(self._model)

    def rounded(self) -> list[RoundedActivation]:
        return list(roundings(self._model))

    def close(self) -> None:
        self._compiled = None
        self._modules = {}
        gc.collect()

    def _compile(self, model: openvino.Model) -> openvino.CompiledModel:
        try:
            return self._core.compile_model(model, self._device, self._settings)
        except RuntimeError as error:
            require_device(self._core, self._device)
            raise ArtifactError(f"OpenVINO cannot compile {self._path.name}: {plain(error)}") from error

    @staticmethod
    def _infer(
        compiled: openvino.CompiledModel, inputs: Mapping[str, np.ndarray], names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        import openvino

        request = compiled.create_infer_request()
        # Tensors are made here: the convenience call of the request would cast and reshape silently.
        for name, value in inputs.items():
            # `ascontiguousarray` makes a vector of a scalar.
            request.set_tensor(name, openvino.Tensor(np.ascontiguousarray(value).reshape(value.shape)))
        request.infer()
        return {name: np.array(request.get_tensor(name).data, copy=True) for name in names}

    def _check(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Names and dtypes as declared (ValueError); baked dims as baked, and one symbol one size.

        The last is checked here because OpenVINO's CPU plugin does not: given two inputs of
        different batch it reads past the end of the smaller one.
        """
        declared = {spec.name: spec for spec in self.inputs}
        missing = [name for name in declared if name not in inputs]
        unknown = [name for name in inputs if name not in declared]
        if missing or unknown:
            raise ValueError(f"inputs are {list(declared)}; missing {missing}, unknown {unknown}")
        sizes: dict[str, tuple[int, str]] = {}
        for name, spec in declared.items():
            value = inputs[name]
            if str(value.dtype) != spec.dtype:
                raise ValueError(f"input {name!r} is declared {spec.dtype}, got {value.dtype}")
            if len(value.shape) != len(spec.dims):
                raise RuntimeError(f"input {name!r} is declared {spec.dims}, got {list(value.shape)}")
            for dim, size in zip(spec.dims, value.shape, strict=True):
                if isinstance(dim, int) and dim != size:
                    raise RuntimeError(f"input {name!r} is declared {spec.dims}, got {list(value.shape)}")
                if isinstance(dim, str):
                    known, where = sizes.setdefault(dim, (size, name))
                    if known != size:
                        raise RuntimeError(f"{dim} is {known} in input {where!r} but {size} in {name!r}")


def read_model(core: openvino.Core, path: Path) -> openvino.Model:
    """Read `.xml` and `.bin`; sizes of one component share a `.bin`.

    Raises:
        ArtifactError: Either is missing or damaged.
    """
    weights = constants_of(path)
    for file in (path, weights):
        if not file.is_file():
            raise ArtifactError(
                f"{file.name} of component {path.parent.name!r} is missing.",
                hint="Convert again, or copy the artifact with all of its files.",
            )
    try:
        return core.read_model(path, weights)
    except RuntimeError as error:
        raise ArtifactError(
            f"OpenVINO cannot read {path.parent.name}/{path.name}: {plain(error)}",
            hint="It is damaged or made by a newer OpenVINO; `exporter verify --check-hashes` tells which.",
        ) from error


def compile_settings(options: RunOptions) -> dict[str, Any]:
    """OpenVINO's properties for run options.

    Raises:
        UsageError: Fewer than one thread.
    """
    settings: dict[str, Any] = {}
    if options.precision_hint != "default":
        settings["INFERENCE_PRECISION_HINT"] = options.precision_hint
    if options.threads is not None:
        if options.threads < 1:
            raise UsageError(f"A model cannot run on {options.threads} threads.")
        settings["INFERENCE_NUM_THREADS"] = options.threads
    return settings


def describe(port: openvino.Output, claimed: Sequence[TensorRecord]) -> TensorRecord:
    """An input or output as the file declares it; a dynamic dim keeps the manifest's symbol."""
    names = port.get_names()
    symbols = next((list(spec.dims) for spec in claimed if spec.name in names), [])
    name = next((spec.name for spec in claimed if spec.name in names), port.get_any_name())
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        raise ArtifactError(f"The OpenVINO file declares {name!r} without a number of dimensions.")
    dims: list[int | str] = []
    for position, dim in enumerate(shape):
        symbol = symbols[position] if position < len(symbols) else None
        if dim.is_static:
            dims.append(dim.get_length())
        else:
            dims.append(symbol if isinstance(symbol, str) else f"{name}_dim_{position}")
    kind = port.get_element_type().get_type_name()
    return TensorRecord(name=name, dtype=DTYPES.get(kind, kind), dims=dims)


def weights_of(model: openvino.Model) -> str | None:
    """The dtype of most stored numbers, if that is a floating one."""
    counts: dict[str, int] = {}
    for node in model.get_ops():
        if node.get_type_name() == "Constant":
            kind = node.get_element_type().get_type_name()
            counts[kind] = counts.get(kind, 0) + math.prod(node.get_output_shape(0))
    name = DTYPES.get(max(counts, key=lambda kind: counts[kind], default=""))
    return name if name in PRECISIONS else None


def precision_of(compiled: openvino.CompiledModel) -> str | None:
    """The arithmetic of the compiled model, read from its executable graph, not from the hint.

    The coarsest floating-point precision among the nodes that do the heavy work.
    """
    found = set()
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if "layerType" in info and info["layerType"].astype(str) in HEAVY and "primitiveType" in info:
            # `brgconv_avx512_f32`: the kernel and the dtype of its activations. (The neighbouring
            # `runtimePrecision` may be that of the stored weights.)
            kind = info["primitiveType"].astype(str).rsplit("_", 1)[-1].lower()
            found.add(DTYPES.get(kind, kind))
    for precision in PRECISIONS:
        if precision in found:
            return precision
    return None
