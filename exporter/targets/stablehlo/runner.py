"""Opens a StableHLO artifact in JAX and runs it. Imports nothing of PyTorch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.artifact import TensorRecord
from exporter.errors import ArtifactError, BackendMissing
from exporter.targets.base import Runner, RunOptions
from exporter.targets.stablehlo.devices import check_platform, find_devices
from exporter.targets.stablehlo.export import DECLARATION, WEIGHTS
from exporter.targets.stablehlo.placement import Placement, batched_inputs
from exporter.targets.stablehlo.weights import read_header

if TYPE_CHECKING:
    from jax.export import Exported

EXTRA = 'pip install "exporter[jax]"'
HINT = "Damaged, or made by a newer JAX? `exporter verify --check-hashes` tells."
NARROW = ("bfloat16", "float16")
RUN = "run"
"""Key of the program as it is, among those that also give outputs of modules."""
NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "I64": "int64", "I32": "int32"}


class StableHloRunner(Runner):
    """A `jax.export` program with its weights on one device, or on each of several that share a batch's rows.

    Args:
        path: `model.stablehlo`; the weights lie beside it.
        options: Device, by JAX's names; all of that kind with `spread`. XLA chooses its threads itself.

    Attributes:
        compile_seconds: What XLA took so far for the shapes it was given; not part of any run.

    Raises:
        ArtifactError: A file is missing, damaged or says something else than the other.
        BackendMissing: No such device here, or the program was not lowered for it.
    """

    def __init__(self, path: Path, options: RunOptions) -> None:
        self._where = f"{path.parent.name}/{path.name}"
        self._exported = read_program(path)
        devices = find_devices(options.device)
        check_platform(self._exported.platforms, devices[0], self._where)
        self._path = path.with_name(WEIGHTS)
        metadata, tensors = read_header(self._path)
        self._labels = declaration(metadata, self._path)
        self._batched = batched_inputs(self._labels["inputs"])
        self._place = Placement(devices if options.spread and self._batched else devices[:1])
        self.shares = len(self._place.devices)
        self.inputs, self.outputs = _records(self._exported, self._labels, self._where)
        self._check_weights(tensors)
        counts: dict[str, int] = {}
        for kind, shape in tensors.values():
            name = NAMES.get(kind, kind)
            counts[name] = counts.get(name, 0) + int(np.prod(shape, dtype=np.int64))
        # What weights are stored in is what the program computes in.
        self.weights = max(counts, key=lambda name: counts[name]) if counts else None
        self.precision = self.weights
        self.compile_seconds = 0.0
        self._arrays: dict[str, Any] | None = None
        self._modules: list[str] | None = None
        self._compiled: dict[Any, Any] = {}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self._call(lambda: self._exported, RUN, inputs)
        return {spec.name: np.array(found[spec.name]) for spec in self.outputs}

    def module_names(self) -> list[str]:
        if self._modules is None:
            from exporter.targets.stablehlo.modules import marks

            self._modules = [mark.path for mark in marks(self._exported)]
        return list(self._modules)

    def intermediates(
        self, inputs: Mapping[str, np.ndarray], modules: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """The output of each named module in one run of the same program; narrow ones as float32.

        Raises:
            ValueError: A name that is not in `module_names()`.
        """
        self.check_modules(modules)
        if not modules:
            return {}
        from exporter.targets.stablehlo.modules import with_modules

        key = tuple(modules)
        _, values = self._call(lambda: with_modules(self._exported, modules), key, inputs)
        return {
            name: np.array(value, np.float32) if str(value.dtype) in NARROW else np.array(value)
            for name, value in zip(modules, values, strict=True)
        }

    def close(self) -> None:
        self._arrays, self._compiled = None, {}

    def _call(self, program: Callable[[], Exported], kind: Any, inputs: Mapping[str, np.ndarray]) -> Any:
        """Compile once for each set of shapes, and run."""
        import jax

        self._check(inputs)
        given, shared = self._place.share(inputs, self._batched)
        key = (kind, tuple((name, value.shape) for name, value in sorted(inputs.items())))
        weights = self._loaded()
        if key not in self._compiled:
            began = time.perf_counter()
            try:
                where = self._place.rows if shared and kind == RUN else None
                jitted = jax.jit(program().call, out_shardings=where)
                self._compiled[key] = jitted.lower(weights, **given).compile()
            except Exception as error:  # jax and XLA raise many types
                raise RuntimeError(f"the program of {self._where} refused: {_one_line(error)}") from error
            self.compile_seconds += time.perf_counter() - began
        try:
            return jax.device_get(self._compiled[key](weights, **given))
        except Exception as error:
            raise RuntimeError(f"the program of {self._where} failed: {_one_line(error)}") from error

    def _loaded(self) -> dict[str, Any]:
        if self._arrays is None:
            self._arrays = load_weights(self._path, self._place.whole)
        return self._arrays

    def _check_weights(self, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        (wanted, *_), _ = _tree(self._exported)
        for name, aval in wanted.items():
            if name not in tensors:
                raise ArtifactError(f"{self._path.parent.name}/{WEIGHTS} lacks {name!r}.", hint=HINT)
            kind, shape = tensors[name]
            if NAMES.get(kind, kind) != str(aval.dtype) or shape != tuple(aval.shape):
                raise ArtifactError(
                    f"{self._path.parent.name}/{WEIGHTS} has {name!r} as {NAMES.get(kind, kind)} "
                    f"{list(shape)}; "
                    f"the program takes {aval.dtype} {list(aval.shape)}."
                )
        unknown = [name for name in tensors if name not in wanted]
        if unknown:
            raise ArtifactError(
                f"{self._path.parent.name}/{WEIGHTS} has {unknown[0]!r}, which the program does not take."
            )

    def _check(self, inputs: Mapping[str, np.ndarray]) -> None:
        """
        Raises:
            ValueError: A missing or unknown input, or a wrong dtype: JAX would cut int64 and float64 off.
            RuntimeError: A shape that is baked in otherwise, out of range, or at odds with another input.
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
                wide = str(value.dtype) in ("int64", "float64")
                raise ValueError(
                    f"input {name!r} is declared {spec.dtype}, got {value.dtype}"
                    + ("; JAX would cut it off without a word" if wide else "")
                )
            if len(value.shape) != len(spec.dims):
                raise RuntimeError(f"input {name!r} is declared {spec.dims}, got {list(value.shape)}")
            for dim, size in zip(spec.dims, value.shape, strict=True):
                self._check_dim(name, spec, dim, size, sizes)

    def _check_dim(
        self, name: str, spec: TensorRecord, dim: int | str, size: int, sizes: dict[str, tuple[int, str]]
    ) -> None:
        if isinstance(dim, int):
            if dim != size:
                raise RuntimeError(f"input {name!r} has {size} where this program was baked for {spec.dims}")
            return
        known, where = sizes.setdefault(dim, (size, name))
        if known != size:
            raise RuntimeError(f"{dim} is {known} in input {where!r} but {size} in {name!r}")
        low, high = self._labels["ranges"].get(dim, (1, None))
        if size < low or (high is not None and size > high):
            raise RuntimeError(
                f"{dim} is {size} in input {name!r}; this program takes "
                f"{low} to {'any' if high is None else high}"
            )
        step = self._labels["multiples"].get(dim, 1)
        if size % step:
            raise RuntimeError(f"{dim} is {size} in input {name!r}; this program takes multiples of {step}")


def read_program(path: Path) -> Exported:
    """
    Raises:
        ArtifactError: The file is missing, or JAX cannot read it.
        BackendMissing: A package that JAX reads programs with is not installed.
    """
    import jax.export

    where = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        raise ArtifactError(
            f"{path.name} of component {path.parent.name!r} is missing.",
            hint="Convert again, or copy the artifact with all of its files.",
        )
    try:
        exported = jax.export.deserialize(bytearray(path.read_bytes()))
        exported.mlir_module()  # the program inside is read only now
    except ImportError as error:
        raise BackendMissing(f"JAX cannot read programs here: {_one_line(error)}.", hint=EXTRA) from error
    except Exception as error:  # the readers raise many types
        raise ArtifactError(f"JAX cannot open {where}: {_one_line(error)}", hint=HINT) from error
    version = exported.calling_convention_version
    oldest = jax.export.minimum_supported_calling_convention_version
    newest = jax.export.maximum_supported_calling_convention_version
    if not oldest <= version <= newest:  # JAX itself looks at it only when it writes
        raise ArtifactError(
            f"{where} follows version {version} of JAX's calling convention; JAX {jax.__version__} knows "
            f"{oldest} to {newest}.",
            hint="Update JAX." if version > newest else "Convert again with this JAX.",
        )
    return exported


def load_weights(path: Path, device: Any = None) -> dict[str, Any]:
    """Weights by name, each taken from the file by itself to a device, or to all of a sharding."""
    import jax
    from safetensors import safe_open

    with safe_open(path, framework="flax") as file:
        return {name: jax.device_put(file.get_tensor(name), device) for name in file.keys()}  # noqa: SIM118


def declaration(metadata: Mapping[str, str], path: Path) -> dict[str, dict[str, Any]]:
    """What the dims are called, their ranges and multiples, as the header of the weights has it.

    Raises:
        ArtifactError: It is not there, or not as this version writes it.
    """
    try:
        found = json.loads(metadata[DECLARATION])
        if not all(isinstance(found[key], dict) for key in ("inputs", "outputs", "ranges", "multiples")):
            raise TypeError("a part is missing")
    except (KeyError, ValueError, TypeError) as error:
        raise ArtifactError(
            f"{path.parent.name}/{path.name} does not say what the program takes and gives.",
            hint="Not made by exporter, or by another version of it: convert again.",
        ) from error
    return dict(found)


def _tree(exported: Exported) -> tuple[Any, Any]:
    """((weights, then nothing), inputs by name) as the program itself has them."""
    import jax

    arguments, keywords = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    return arguments, keywords


def _records(
    exported: Exported, labels: Mapping[str, Mapping[str, Any]], where: str
) -> tuple[tuple[TensorRecord, ...], tuple[TensorRecord, ...]]:
    """Names and dtypes as the program has them, dims with their names from the header."""
    import jax

    _, inputs = _tree(exported)
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    if not isinstance(outputs, dict):
        raise ArtifactError(f"{where} gives its outputs without names: not made by exporter.")
    result = []
    for kind, avals in (("inputs", inputs), ("outputs", outputs)):
        names = labels[kind]
        ordered = [name for name in names if name in avals] + [name for name in avals if name not in names]
        result.append(tuple(_record(name, avals[name], names.get(name)) for name in ordered))
    missing = [name for name in labels["inputs"] if name not in inputs]
    if missing:
        raise ArtifactError(f"{where} takes {list(inputs)}, its weights declare {list(labels['inputs'])}.")
    return result[0], result[1]


def _record(name: str, aval: Any, labels: Sequence[Any] | None) -> TensorRecord:
    dims = [
        size if isinstance(size, int) else (labels[axis] if _is_label(labels, axis) else str(size))  # type: ignore[index]
        for axis, size in enumerate(aval.shape)
    ]
    return TensorRecord(name=name, dtype=str(aval.dtype), dims=dims)


def _is_label(labels: Sequence[Any] | None, axis: int) -> bool:
    return labels is not None and axis < len(labels) and isinstance(labels[axis], str)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
