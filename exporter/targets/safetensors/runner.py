"""Opens a component of a safetensors artifact with the library's own class, and runs it in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.architectures.safety_checker import MODULE as SAFETY_CHECKER_MODULE
from exporter.architectures.safety_checker import NAME as SAFETY_CHECKER
from exporter.artifact import ComponentRecord, TensorRecord
from exporter.errors import ArtifactError, CheckpointError, UsageError
from exporter.targets.base import Runner, RunOptions
from exporter.targets.torch_module import torch_device
from exporter.threads import threads

if TYPE_CHECKING:
    import torch

    from exporter.architectures.base import Component, TensorSpec

ARITHMETIC = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "default": "float32"}
"""`default` is what `from_pretrained` does when nobody names a dtype."""


class SafetensorsRunner(Runner):
    """A component as diffusers or transformers loads it from the artifact's own files.

    Names and dims come from the config in the artifact: the files hold weights only. Inputs and
    outputs are float32 at the border whatever the arithmetic.

    Args:
        root: The artifact.
        record: Of the component.
        options: `precision_hint` is the dtype the weights are loaded in; device and threads are PyTorch's.

    Raises:
        ArtifactError: Files are missing or damaged, or do not hold every weight of the config.
        BackendMissing: No such device here.
    """

    def __init__(self, root: Path, record: ComponentRecord, options: RunOptions) -> None:
        import torch

        if options.threads is not None and options.threads < 1:
            raise UsageError(f"A model cannot run on {options.threads} threads.")
        self._threads = options.threads
        self._device = torch_device(options.device)
        self.precision = ARITHMETIC[options.precision_hint]
        self._dtype: torch.dtype = getattr(torch, self.precision)
        try:
            component = find_component(root, record)
            _check_record(component, record)
        except CheckpointError as error:
            raise ArtifactError(error.message, hint=error.hint) from error
        inner = load_inner(component, record.details.get("variant"), self._dtype)
        self._module: Any = component.adapt(inner).eval().requires_grad_(False).to(self._device)
        self.inputs = tuple(_record(spec) for spec in component.inputs)
        self.outputs = tuple(_record(spec) for spec in component.outputs)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import torch

        tensors = self._tensors(inputs)
        with torch.no_grad(), threads(self._threads):
            outputs = self._module(**tensors)
        return {spec.name: _array(value) for spec, value in zip(self.outputs, outputs, strict=True)}

    def module_names(self) -> list[str]:
        return [name for name, _ in self._module.inner.named_modules() if name]

    def intermediates(
        self, inputs: Mapping[str, np.ndarray], modules: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """The output of each named module in one run; modules without one single tensor are left out.

        Raises:
            ValueError: A name that is not in `module_names()`.
        """
        known = set(self.module_names())
        unknown = [name for name in modules if name not in known]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no module of this component")
        found: dict[str, np.ndarray] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(module: object, given: object, output: object) -> None:
                tensor = _single(output)
                if tensor is not None:
                    found[name] = _array(tensor.clone())

            return hook

        handles = [self._module.inner.get_submodule(n).register_forward_hook(keep(n)) for n in modules]
        try:
            self.run(inputs)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def close(self) -> None:
        self._module = None

    def _tensors(self, inputs: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        import torch

        declared = {spec.name: spec for spec in self.inputs}
        missing = [name for name in declared if name not in inputs]
        unknown = [name for name in inputs if name not in declared]
        if missing or unknown:
            raise ValueError(f"inputs are {list(declared)}; missing {missing}, unknown {unknown}")
        tensors = {}
        for name, spec in declared.items():
            value = inputs[name]
            if str(value.dtype) != spec.dtype:
                raise ValueError(f"input {name!r} is declared {spec.dtype}, got {value.dtype}")
            if len(value.shape) != len(spec.dims):
                raise RuntimeError(f"input {name!r} is declared {spec.dims}, got {list(value.shape)}")
            tensor = torch.from_numpy(np.array(value, order="C")).to(self._device)
            # A timestep keeps float32: diffusers computes its embedding there.
            tensors[name] = tensor.to(self._dtype) if tensor.is_floating_point() and tensor.dim() else tensor
        return tensors


def find_component(root: Path, record: ComponentRecord) -> Component:
    """The component that an artifact's configs describe.

    Raises:
        CheckpointError: Configs are missing, or its files are damaged.
    """
    from exporter.architectures import components_of
    from exporter.checkpoints import resolve

    checkpoint = resolve(root, variant=record.details.get("variant"))
    # An artifact of some components only keeps the others' configs, but not their place in its index.
    more = {n: c for n, c in _left_out(root).items() if n not in checkpoint.component_classes}
    checkpoint = replace(checkpoint, index={**checkpoint.index, **more})
    for component in components_of(checkpoint):
        if component.name == record.name:
            # The loaders below trust a file's header; this reader does not.
            checkpoint.stored(component.folder)
            return component
    raise CheckpointError(f"{root} describes no component {record.name!r}.")


def _left_out(root: Path) -> dict[str, list[str]]:
    """Folder → library and class of everything that has a config, by what the config says."""
    from exporter.checkpoints.checkpoint import read_json

    found = {}
    for path in sorted(root.glob("*/config.json")):
        config = read_json(path)
        if "_class_name" in config:
            found[path.parent.name] = ["diffusers", str(config["_class_name"])]
        elif config.get("architectures"):
            found[path.parent.name] = ["transformers", str(config["architectures"][0])]
    return found


def load_inner(component: Component, variant: str | None, dtype: torch.dtype) -> torch.nn.Module:
    """The library's module with the weights from its folder, by `from_pretrained`.

    Raises:
        ArtifactError: The library refuses the files, or would make up weights that they lack.
    """
    folder = component.checkpoint.root / component.folder
    library, _ = component.checkpoint.index.get(component.folder) or ("diffusers", None)
    if component.name == SAFETY_CHECKER:
        library = SAFETY_CHECKER_MODULE
    elif library not in ("diffusers", "transformers"):
        library = _library_of(component.class_name)
    cls = getattr(import_module(library), component.class_name)
    try:
        with _quiet():
            module, info = cls.from_pretrained(
                folder, torch_dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True,
                low_cpu_mem_usage=True, output_loading_info=True,
            )  # fmt: skip
    except Exception as error:  # the libraries raise whatever their parts do
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ArtifactError(
            f"{library} cannot open {component.folder} of the artifact: {reason}",
            hint="Convert again, or copy the artifact with all of its files.",
        ) from error
    for kind, word in (("missing_keys", "lack"), ("mismatched_keys", "hold in another shape")):
        if info.get(kind):
            names = sorted(str(n) for n in info[kind])
            raise ArtifactError(
                f"The files of {component.folder} {word} {names[0]!r} ({len(names)} weights in all), which "
                f"{library} would fill with random numbers."
            )
    result: torch.nn.Module = module
    return result


def _check_record(component: Component, record: ComponentRecord) -> None:
    """The manifest's dtype, which decides what rounding is allowed, is that of the files.

    Raises:
        CheckpointError: The files hold another.
    """
    from exporter.storage import FLOAT8, TORCH_NAMES, goes_to_float8, is_float

    folder = component.checkpoint.stored(component.folder)
    for name, tensor in folder.items():
        if not is_float(tensor.dtype):
            continue
        found = TORCH_NAMES[tensor.dtype]
        if record.dtype == FLOAT8:
            wrong = (found == FLOAT8) != goes_to_float8(name, tensor.shape)
        else:
            wrong = _wider(record.dtype, found)
        if wrong:
            raise CheckpointError(
                f"The manifest says that {component.folder} is stored in {record.dtype}, "
                f"but {name!r} is {found}."
            )


def _wider(claimed: str, found: str) -> bool:
    """Whether a tensor has more precision than the manifest claims, and so is owed less rounding."""
    return found != claimed and claimed in ("float16", "bfloat16")


def _library_of(class_name: str) -> str:
    import transformers

    return "transformers" if hasattr(transformers, class_name) else "diffusers"


def _record(spec: TensorSpec) -> TensorRecord:
    return TensorRecord(name=spec.name, dtype=spec.dtype, dims=list(spec.dims))


def _single(output: object) -> torch.Tensor | None:
    """A module's output where it is one tensor, or the only one of a tuple."""
    import torch

    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, tuple | list):
        tensors = [item for item in output if isinstance(item, torch.Tensor)]
        return tensors[0] if len(tensors) == 1 else None
    sample = getattr(output, "sample", None)
    return sample if isinstance(sample, torch.Tensor) else None


def _array(value: torch.Tensor) -> np.ndarray:
    value = value.detach().cpu()
    array: np.ndarray = (value.float() if value.is_floating_point() else value).numpy()
    return array


@contextmanager
def _quiet() -> Iterator[None]:
    """The libraries warn of missing weights and go on; here they are an error that is raised."""
    import diffusers.utils.logging as theirs
    import transformers.utils.logging as others

    before = theirs.get_verbosity(), others.get_verbosity()
    theirs.set_verbosity_error()
    others.set_verbosity_error()
    try:
        yield
    finally:
        theirs.set_verbosity(before[0])
        others.set_verbosity(before[1])
