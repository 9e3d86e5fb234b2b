"""Opens an ONNX file in ONNX Runtime and runs it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.artifact import TensorRecord
from exporter.errors import ArtifactError, BackendMissing, UsageError
from exporter.targets.base import QuantisedWeight, Runner, RunOptions
from exporter.targets.onnx.compiled import SMALL

if TYPE_CHECKING:
    import onnx
    import onnxruntime

MODULES_KEY = "exporter.modules"
DTYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64",
    "tensor(bfloat16)": "bfloat16", "tensor(int64)": "int64", "tensor(int32)": "int32",
    "tensor(int8)": "int8", "tensor(uint8)": "uint8", "tensor(bool)": "bool",
}  # fmt: skip
PROVIDERS = {
    "cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "rocm": "ROCMExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider", "dml": "DmlExecutionProvider",
    "openvino": "OpenVINOExecutionProvider", "coreml": "CoreMLExecutionProvider",
}  # fmt: skip
FLOATS = ("float32", "float16", "bfloat16")


class OnnxRunner(Runner):
    """A component in ONNX Runtime, by default on the CPU.

    ONNX Runtime computes what the graph says, so `precision_hint` changes nothing here; `precision`
    is the graph's own.

    Args:
        path: `model.onnx`.
        options: Device (`cpu`, `cuda`, `dml`, … or a provider's full name) and threads; a graph that was
            optimised before, to open in the place of the file.
        save: Also keep what ONNX Runtime makes of the graph, in this file and one beside it.

    Raises:
        ArtifactError: The files are missing, damaged, no ONNX model, or the data lies outside the folder.
        BackendMissing: This ONNX Runtime has no such device.
    """

    def __init__(self, path: Path, options: RunOptions, *, save: Path | None = None) -> None:
        path = options.compiled or path
        self._path = path
        self._options = options
        self._save = save
        self._graph = read_graph(path)
        check_data(self._graph, path.parent)
        self._modules = module_map(self._graph)
        self._providers = providers_of(options)
        self._watched = {name: self._modules[name] for name in options.watch if name in self._modules}
        self._session: onnxruntime.InferenceSession | None = self._open(self._shown())
        self.inputs = tuple(describe(node) for node in self._session.get_inputs())
        declared = {value.name for value in self._graph.graph.output}
        self.outputs = tuple(describe(n) for n in self._session.get_outputs() if n.name in declared)
        self.precision = precision_of(self._graph)
        self.weights = weights_of(self._graph)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._check(inputs)
        if self._session is None:
            self._session = self._open(self._shown())
        names = [spec.name for spec in self.outputs]
        values = self._infer(self._session, inputs, [*names, *self._watched.values()])
        watched = {path: values[name] for path, name in self._watched.items()}
        return {name: values[name] for name in names} | watched

    def module_names(self) -> list[str]:
        return list(self._modules)

    def intermediates(
        self, inputs: Mapping[str, np.ndarray], modules: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """The output of each named module in one run.

        The graph is opened again with the extra outputs declared. ONNX Runtime then fuses nothing across
        them, so the numbers may differ from a plain run by rounding. The plain session is freed
        meanwhile, so the weights are held once. Nothing is written: the graph goes in from memory, its
        weights are found in the component's folder.

        Raises:
            ValueError: A name that is not in `module_names()`.
        """
        self._check(inputs)
        self.check_modules(modules)
        wanted = list(dict.fromkeys(self._modules[name] for name in modules))
        if not wanted:
            return {}
        self._session = None
        session = self._open(with_outputs(self._graph, wanted))
        values = self._infer(session, inputs, wanted)
        return {name: values[self._modules[name]] for name in modules}

    def quantised(self) -> Iterator[QuantisedWeight]:
        from exporter.targets.onnx.quantised import quantised

        return quantised(self._graph, self._path.parent)

    def close(self) -> None:
        self._session = None
        self._modules = {}

    def _shown(self) -> Path | bytes:
        """The file, or what is in it with the watched values as further outputs."""
        if not self._watched:
            return self._path
        declared = [value.name for value in self._graph.graph.output]
        return with_outputs(self._graph, list(dict.fromkeys([*declared, *self._watched.values()])))

    def _open(self, model: Path | bytes) -> onnxruntime.InferenceSession:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        if self._options.threads is not None:
            if self._options.threads < 1:
                raise UsageError(f"A model cannot run on {self._options.threads} threads.")
            settings.intra_op_num_threads = self._options.threads
        if self._options.compiled is not None:
            settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        elif self._save is not None:
            settings.optimized_model_filepath = str(self._save)
            data = f"{self._save.name}_data"
            settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", data)
            settings.add_session_config_entry(
                "session.optimized_model_external_initializers_min_size_in_bytes", SMALL
            )
        if isinstance(model, bytes):
            folder = str(self._path.parent.resolve())
            settings.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        try:
            return onnxruntime.InferenceSession(
                str(model) if isinstance(model, Path) else model, settings, providers=self._providers
            )
        except Exception as error:  # ONNX Runtime's own types share no base class
            raise ArtifactError(
                f"ONNX Runtime cannot open {self._path.parent.name}/{self._path.name}: {one_line(error)}",
                hint="Damaged, or made for a newer ONNX Runtime; `exporter verify --check-hashes` tells.",
            ) from error

    def _infer(
        self, session: onnxruntime.InferenceSession, inputs: Mapping[str, np.ndarray], names: list[str]
    ) -> dict[str, np.ndarray]:
        try:
            values = session.run(
                names, {name: np.asarray(value, order="C") for name, value in inputs.items()}
            )
        except Exception as error:  # ONNX Runtime's own types share no base class
            raise RuntimeError(f"ONNX Runtime refused {self._path.parent.name}: {one_line(error)}") from error
        return dict(zip(names, values, strict=True))

    def _check(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Names and dtypes as declared (ValueError); ranks and baked dims as baked (RuntimeError)."""
        declared = {spec.name: spec for spec in self.inputs}
        missing = [name for name in declared if name not in inputs]
        unknown = [name for name in inputs if name not in declared]
        if missing or unknown:
            raise ValueError(f"inputs are {list(declared)}; missing {missing}, unknown {unknown}")
        for name, spec in declared.items():
            value = inputs[name]
            if str(value.dtype) != spec.dtype:
                raise ValueError(f"input {name!r} is declared {spec.dtype}, got {value.dtype}")
            fits = len(value.shape) == len(spec.dims) and all(
                isinstance(dim, str) or dim == size for dim, size in zip(spec.dims, value.shape, strict=True)
            )
            if not fits:
                raise RuntimeError(f"input {name!r} is declared {spec.dims}, got {list(value.shape)}")


def read_graph(path: Path) -> onnx.ModelProto:
    """The graph file, without its weights.

    Raises:
        ArtifactError: It is missing or no ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise ArtifactError(
            f"{path.name} of component {path.parent.name!r} is missing.",
            hint="Convert again, or copy the artifact with all of its files.",
        )
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ArtifactError(
            f"{path.parent.name}/{path.name} is not an ONNX model: {one_line(error)}"
        ) from error
    if not model.graph.output:
        raise ArtifactError(f"{path.parent.name}/{path.name} is not an ONNX model: it has no outputs.")
    return model


def check_data(model: onnx.ModelProto, folder: Path) -> None:
    """Every external tensor lies in a file of the model's own folder, within its length.

    Raises:
        ArtifactError: A path leaves the folder (or is a link out of it), a file is missing or too short.
    """
    sizes: dict[str, int] = {}
    for tensor in tensors_of(model):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if not entries:
            continue
        location = entries.get("location", "")
        if location not in sizes:
            sizes[location] = _data_size(location, folder)
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
        except ValueError:
            offset = -1
            length = 0
        if offset < 0 or length < 0 or offset + length > sizes[location]:
            raise ArtifactError(
                f"{folder.name}: weight {tensor.name!r} is said to end at byte {offset + length} of "
                f"{location}, which has {sizes[location]}.",
                hint="The data file was cut off or belongs to another export; convert again.",
            )


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initializers, sparse ones, and those in attributes, subgraphs included."""
    graphs = [model.graph]
    attributes = [a for function in model.functions for node in function.node for a in node.attribute]
    while graphs or attributes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            attributes += [a for node in graph.node for a in node.attribute]
            continue
        attribute = attributes.pop()
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        if attribute.HasField("g"):
            graphs.append(attribute.g)
        graphs += list(attribute.graphs)


def _data_size(location: str, folder: Path) -> int:
    pure = PurePosixPath(location)
    bad = not pure.parts or pure.is_absolute() or ".." in pure.parts or "\\" in location or ":" in location
    bad = bad or not location.isprintable() or max(map(len, pure.parts)) > 200
    path = folder / location
    if bad or not path.resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(
            f"{folder.name}: the model keeps weights outside its folder ({location!r}); refused.",
            hint="Such a file reads whatever it points at; do not use it.",
        )
    if not path.is_file():
        raise ArtifactError(
            f"{folder.name}: the data file {location} is missing.",
            hint="Copy the artifact with all of its files, or convert again.",
        )
    return path.stat().st_size


def module_map(model: onnx.ModelProto) -> dict[str, str]:
    """Module path → value name, as the export noted it, for values that are in the graph.

    Empty for a file that was not made by exporter.
    """
    notes = {entry.key: entry.value for entry in model.metadata_props}
    try:
        modules = json.loads(notes.get(MODULES_KEY, "{}"))
    except ValueError:
        return {}
    if not isinstance(modules, dict):
        return {}
    values = {output for node in model.graph.node for output in node.output}
    return {path: value for path, value in modules.items() if value in values}


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> bytes:
    """The graph with these values as its only outputs, serialised without weights."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    del copy.graph.output[:]
    for name in names:
        copy.graph.output.append(known.get(name) or onnx.ValueInfoProto(name=name))
    return copy.SerializeToString()


def precision_of(model: onnx.ModelProto) -> str | None:
    """The dtype of most floating weights: what an ONNX graph is written in is what it computes in."""
    floats = {name: count for name, count in _stored(model).items() if name in FLOATS}
    return max(floats, key=lambda name: floats[name], default=None)


def weights_of(model: onnx.ModelProto) -> str | None:
    """The dtype of most weights, if that is a floating one."""
    counts = _stored(model)
    name = max(counts, key=lambda name: counts[name], default=None)
    return name if name in FLOATS else None


def _stored(model: onnx.ModelProto) -> dict[str, int]:
    """Number of stored elements by dtype."""
    import math

    import onnx

    counts: dict[str, int] = {}
    for tensor in model.graph.initializer:
        name = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
        name = {"float": "float32"}.get(name, name)
        counts[name] = counts.get(name, 0) + math.prod(tensor.dims)
    return counts


def providers_of(options: RunOptions) -> list[str]:
    """ONNX Runtime's execution providers for a device.

    Raises:
        BackendMissing: This build of ONNX Runtime has none for it.
    """
    import onnxruntime

    device = options.device or "cpu"
    provider = PROVIDERS.get(device.lower().split(":")[0], device)
    have = onnxruntime.get_available_providers()
    if provider not in have:
        short = [name for name, full in PROVIDERS.items() if full in have]
        raise BackendMissing(
            f"This ONNX Runtime has no device {device!r}; it has: {', '.join(short)}.",
            hint="Install the ONNX Runtime build of that device, such as onnxruntime-gpu.",
        )
    return [provider] if provider == PROVIDERS["cpu"] else [provider, PROVIDERS["cpu"]]


def describe(node: Any) -> TensorRecord:
    """An input or output as the file declares it."""
    dims = [
        dim if isinstance(dim, int | str) and dim != "" else f"dim_{axis}"
        for axis, dim in enumerate(node.shape)
    ]
    return TensorRecord(name=node.name, dtype=DTYPES.get(node.type, node.type), dims=dims)


def one_line(error: BaseException) -> str:
    """The first line of an error's text."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
