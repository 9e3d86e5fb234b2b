"""What the targets that stay in PyTorch share: the module to export, and what a file says of itself.

At the border every floating tensor is float32, whatever the module computes in: numpy has no
bfloat16, and a client need not know the dtype inside. The casts are part of the exported program.
"""

from __future__ import annotations

import inspect
import json
import logging
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exporter.artifact import TensorRecord
from exporter.errors import ArtifactError, BackendMissing
from exporter.targets.base import component_size

if TYPE_CHECKING:
    import torch
    from torch import nn

    from exporter.architectures.base import Component, Size, TensorSpec
    from exporter.targets.options import Static

DECLARATION = "exporter.json"
VERSION = 1
MB = 1_000_000
SAME = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}
"""Relative L2 between a program and the module it was made from beyond which it is wrong at a size. They run
the same kernels, so a right one differs by rounding and a baked size by the order of the output itself."""
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
GRANULE = 8
"""Latent cells that every UNet of the family divides by: three levels that halve."""


class Declaration(BaseModel):
    """What a file says of itself: `extra/exporter.json` in its archive, for neither format names shapes.

    Attributes:
        version: Of this description; a newer one is refused.
        inputs / outputs: In order of the call.
        dtype: Of weights and arithmetic.
        modules: Module path → name of the value that is its output.
        ranges: Symbol → smallest and largest size the program was proven for.
        multiples: Symbol → what its size has to be a multiple of.
        compiled: Where a compiled package runs: device, ISA, torch; None for a portable program.
        optimize: Apply `optimize_for_inference` when it is opened.
    """

    model_config = ConfigDict(extra="forbid")

    version: int = VERSION
    inputs: list[TensorRecord]
    outputs: list[TensorRecord]
    dtype: str
    modules: dict[str, str] = Field(default_factory=dict)
    ranges: dict[str, tuple[int, int | None]] = Field(default_factory=dict)
    multiples: dict[str, int] = Field(default_factory=dict)
    compiled: dict[str, str] | None = None
    optimize: bool = False

    @classmethod
    def read(cls, path: Path) -> Declaration:
        """From an archive, as a zip: runs nothing of it.

        Raises:
            ArtifactError: The file is missing, cut short, or not one of ours.
        """
        where = f"{path.parent.name}/{path.name}"
        if not path.is_file():
            raise ArtifactError(
                f"{path.name} of component {path.parent.name!r} is missing.",
                hint="Convert again, or copy the artifact with all of its files.",
            )
        try:
            with zipfile.ZipFile(path) as archive:
                name = next(n for n in archive.namelist() if n.endswith(f"/extra/{DECLARATION}"))
                text = archive.read(name)
        except StopIteration as error:
            raise ArtifactError(
                f"{where} does not say what it takes and gives: not made by exporter, or cut short.",
                hint="Copy it again in full, or convert again.",
            ) from error
        except (OSError, zipfile.BadZipFile, ValueError, EOFError) as error:
            raise ArtifactError(
                f"{where} is no PyTorch archive, or was cut short ({error}).",
                hint="Copy it again in full, or convert again.",
            ) from error
        try:
            data = json.loads(text)
            version = data.get("version", 1) if isinstance(data, dict) else 1
            if isinstance(version, int) and version > VERSION:
                raise ArtifactError(
                    f"{where} was written by a newer exporter (its description has version {version}, this "
                    f"one reads up to {VERSION}).",
                    hint="Update exporter.",
                )
            return cls.model_validate(data)
        except (ValidationError, ValueError) as error:
            raise ArtifactError(f"{where} describes itself in a way this version cannot read.") from error

    def check(self, inputs: Mapping[str, np.ndarray]) -> None:
        """
        Raises:
            ValueError: A missing or unknown input, or a wrong dtype.
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
                raise ValueError(f"input {name!r} is declared {spec.dtype}, got {value.dtype}")
            shape = list(value.shape)
            if len(shape) != len(spec.dims):
                raise RuntimeError(f"input {name!r} is declared {spec.dims}, got {shape}")
            for dim, size in zip(spec.dims, shape, strict=True):
                if isinstance(dim, int):
                    if dim != size:
                        raise RuntimeError(
                            f"input {name!r} has shape {shape}, but this program was baked for {spec.dims}"
                        )
                    continue
                known, where = sizes.setdefault(dim, (size, name))
                if known != size:
                    raise RuntimeError(f"{dim} is {known} in input {where!r} but {size} in {name!r}")
                low, high = self.ranges.get(dim, (1, None))
                if size < low or (high is not None and size > high):
                    raise RuntimeError(
                        f"{dim} is {size} in input {name!r}; this program takes "
                        f"{low} to {'any' if high is None else high}"
                    )
                step = self.multiples.get(dim, 1)
                if size % step:
                    raise RuntimeError(
                        f"{dim} is {size} in input {name!r}; this program takes multiples of {step}"
                    )


def check_entries(path: Path) -> None:
    """Read an archive through, a second per gigabyte: PyTorch's own reader skips the checksums.

    Raises:
        ArtifactError: An entry is not what was written.
    """
    where = f"{path.parent.name}/{path.name}"
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (OSError, zipfile.BadZipFile, ValueError, EOFError) as error:
        bad = str(error)
    if bad is not None:
        raise ArtifactError(f"{where} is damaged ({bad}).", hint="Copy it again in full, or convert again.")


def prepare(component: Component, dtype: str) -> nn.Module:
    """The component's module with real weights, in eval mode, without the parts it does not use.

    Weights stored in `dtype` stay memory-mapped; others are cast, which takes the model's size in memory.
    """
    import torch

    wanted = getattr(torch, dtype)
    module = component.reference_module(wanted)
    for name, child in list(module.get_submodule("inner").named_children()):
        if any(parameter.is_meta for parameter in child.parameters()):  # the VAE's other half
            del module.get_submodule("inner")._modules[name]
    return module


def cast_at_border(module: nn.Module, component: Component, dtype: str) -> nn.Module:
    """Make the module take its inputs by position, in the component's order, and give float32 outputs.

    Floating inputs are float32 too; scalars (timesteps) are left as they are. The signature names the
    inputs: a trace names its own by it.
    """
    import torch

    names = [spec.name for spec in component.inputs]
    if dtype == "float32" and list(inspect.signature(module.forward).parameters)[: len(names)] == names:
        return module
    wanted = getattr(torch, dtype)
    casts = [spec.dtype.startswith("float") and len(spec.dims) > 1 for spec in component.inputs]
    original = module.forward

    def forward(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        cast = [value.to(wanted) if yes else value for value, yes in zip(inputs, casts, strict=True)]
        return tuple(value.float() for value in original(**dict(zip(names, cast, strict=True))))

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])  # type: ignore[attr-defined]
    module.forward = forward  # type: ignore[method-assign]
    return module


def trace_size(component: Component, static: Static | None) -> Size:
    """The size to export at: as baked, or the native one with a batch of two."""
    return component_size(component, static) if static else component.native


def records(specs: Sequence[TensorSpec], size: Size, free: set[str]) -> list[TensorRecord]:
    """Specs as records: symbols that are free stay symbols, the others are numbers."""
    return [
        TensorRecord(
            name=spec.name,
            dtype=spec.dtype,
            dims=[dim if isinstance(dim, int) or dim in free else size.resolve(dim) for dim in spec.dims],
        )
        for spec in specs
    ]


def torch_devices() -> list[str]:
    """PyTorch's devices on this machine, by its own names."""
    import torch

    found = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def torch_device(name: str | None) -> torch.device:
    """
    Raises:
        BackendMissing: PyTorch knows no such device, or there is none here; the message lists what there is.
    """
    import torch

    try:
        device = torch.device((name or "cpu").lower())  # OpenVINO's and ours differ in case only
        torch.empty(1, device=device)
        if device.type == "meta":
            raise RuntimeError("a meta device holds no values")
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise BackendMissing(
            f"PyTorch finds no device {name!r} here; it finds: {', '.join(torch_devices())}.",
            hint="`exporter doctor` tells more about each.",
        ) from error
    return device


@contextmanager
def no_tf32() -> Iterator[None]:
    """On NVIDIA GPUs PyTorch computes float32 convolutions with 10 bits of mantissa unless told otherwise."""
    import torch

    places: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value


def to_tensors(
    inputs: Mapping[str, np.ndarray], specs: Sequence[TensorRecord], device: torch.device
) -> list[torch.Tensor]:
    """Arrays as tensors, in the order of the call."""
    import torch

    return [torch.from_numpy(np.array(inputs[spec.name], order="C")).to(device) for spec in specs]


def to_array(value: torch.Tensor) -> np.ndarray:
    """A tensor as an array; bfloat16 and float16, which only intermediates have, as float32."""
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).numpy()


def majority(tensors: Sequence[torch.Tensor]) -> str | None:
    """The floating dtype of most numbers: what PyTorch is given weights in is what it computes in."""
    counts: dict[str, int] = {}
    for tensor in tensors:
        if tensor.is_floating_point():
            name = str(tensor.dtype).removeprefix("torch.")
            counts[name] = counts.get(name, 0) + tensor.numel()
    return max(counts, key=lambda name: counts[name]) if counts else None


def one_line(error: BaseException) -> str:
    """The line of an error that says most: the last of a TorchScript traceback, else the first."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    line = lines[-1] if lines[0].startswith("The following operation failed") else lines[0]
    return line[:300]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch's tracers say about themselves; what they got wrong is measured instead."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._export", "torch._inductor")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def declaration_text(declaration: Declaration) -> str:
    return json.dumps(declaration.model_dump(mode="json"), sort_keys=True)
