"""The reference module, computed in a chosen arithmetic.

- `float64`: the truth. The module stays as it is on disk (memory-mapped); every operator gets its
  floating operands cast to float64 just before it runs and the casts are freed just after, so the
  whole model never exists in float64. What the module itself asks to be float32 (timestep
  frequencies, softmax) is computed in float64 too: truth means exact arithmetic, not "mostly".
- `float32`, `float16`, `bfloat16`: PyTorch as it is, weights and activations at that precision.
  What the module asks to be float32 stays float32.
"""

from __future__ import annotations

import gc
import mmap
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from exporter.storage import goes_to_float8

if TYPE_CHECKING:
    from torch import nn

    from exporter.architectures.base import Component
    from exporter.checkpoints import StoredTensor

Tensors = dict[str, torch.Tensor]

UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative error of one rounding to nearest (Higham, Accuracy and Stability, 2.1)."""

BIG = 20_000_000
RELEASED_FROM = 1 << 18
"""Bytes of the smallest weight whose pages are worth handing back."""
_LOW = (torch.float32, torch.float16, torch.bfloat16)
_STRIP_BYTES = 1 << 28
_aten = torch.ops.aten


class Exact(TorchDispatchMode):
    """Computes every operator in float64, whatever dtype its operands have or ask for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") in _LOW:
            kwargs["dtype"] = torch.float64
        if func is _aten.embedding.default:  # selects rows: the table need not be cast
            return _widen(func(*args, **kwargs))
        args, kwargs = tree_map(_widen, (args, kwargs))
        if func is _aten.convolution.default and _fits_strips(args):
            return convolve_in_strips(*args[:5])
        return func(*args, **kwargs)


class _WidenConvolutions(TorchFunctionMode):
    """`conv2d` and its kin check that dtypes agree before any operator is dispatched."""

    FUNCTIONS = frozenset(
        (torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose1d, torch.conv_transpose2d)
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.FUNCTIONS:
            args, kwargs = tree_map(_widen, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))


class _FastHalfConvolutions(TorchDispatchMode):
    """float16 convolutions on processors that have none: products and sums in float32, rounded once.

    That is what PyTorch's own loop for them does too, 35 times slower (the middle UNet of
    `tests.benchmarks.coreml_interpreter`: 41 of 43 seconds), and hardware that accumulates in float32.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _aten.convolution.default and args[0].dtype == torch.float16:
            x, weight, bias, *rest = args
            wide = func(x.float(), weight.float(), None if bias is None else bias.float(), *rest, **kwargs)
            return wide.to(torch.float16)
        return func(*args, **kwargs)


class _ChannelsLast(TorchFunctionMode):
    """Convolutions, and so everything between them, in the channels-last layout."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d:
            x, weight, *rest = args
            args = (
                x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x,
                weight.contiguous(memory_format=torch.channels_last),
                *rest,
            )
        return func(*args, **(kwargs or {}))


def _widen(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype in _LOW and not value.is_meta:
        return value.to(torch.float64)
    return value


def _fits_strips(args: tuple) -> bool:
    """2-D, plain: no transpose, dilation 1, one group."""
    x, weight, _, _, _, dilation, transposed, _, groups = args
    return x.dim() == 4 and weight.dim() == 4 and not transposed and set(dilation) == {1} and groups == 1


def convolve_in_strips(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: list[int], padding: list[int]
) -> torch.Tensor:
    """2-D convolution, computed a few output rows at a time.

    PyTorch's float64 convolution unfolds the whole picture (kernel area times its size: 5 GB for one
    layer of a 512×512 VAE); strips keep that below 256 MB and change no result.
    """
    if isinstance(padding, int):
        padding = [padding, padding]
    if len(padding) == 1:
        padding, stride = list(padding) * 2, list(stride) * 2
    x = torch.nn.functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    kernel = weight.shape[2]
    rows = (x.shape[2] - kernel) // stride[0] + 1
    columns = (x.shape[3] - weight.shape[3]) // stride[1] + 1
    per_row = weight[0].numel() * columns * 8
    strip = max(1, min(rows, _STRIP_BYTES // max(per_row, 1)))
    if strip >= rows:
        return _aten.convolution(x, weight, bias, stride, [0, 0], [1, 1], False, [0, 0], 1)
    pieces = []
    for first in range(0, rows, strip):
        last = min(first + strip, rows)
        part = x[:, :, first * stride[0] : (last - 1) * stride[0] + kernel]
        pieces.append(_aten.convolution(part, weight, bias, stride, [0, 0], [1, 1], False, [0, 0], 1))
    return torch.cat(pieces, dim=2)


def _round_weights(module: nn.Module, component: Component, dtype: torch.dtype) -> None:
    """Replace every weight by its value rounded to `dtype`, one at a time, straight from the file.

    Of a component in float8 only some weights are: the rest stays as it is.
    """
    parameters = dict(module.named_parameters())
    for name, stored in component.reference_weights.items():
        parameter = parameters.get(name)
        if dtype.itemsize == 1 and not goes_to_float8(name.removeprefix("inner."), stored.shape):
            continue
        if parameter is not None and parameter.is_floating_point():
            parameter.data = stored.load().to(dtype).to(parameter.dtype)


def _release_when_used(module: nn.Module, component: Component) -> None:
    """Hand the pages of a layer's weights back as soon as it has run.

    A pass over mapped weights otherwise ends with all of them resident. They stay in the system's file
    cache, so the next pass finds them there; what it costs is the page faults, about a second a pass for
    3.4 GB. A weight that was cast when it was loaded is no mapping, and stays.
    """
    stored = component.reference_weights
    for path, layer in module.named_modules():
        own = [
            stored[name]
            for key, parameter in layer._parameters.items()
            if parameter is not None
            and (name := f"{path}.{key}" if path else key) in stored
            and stored[name].nbytes >= RELEASED_FROM
            and parameter.dtype == stored[name].torch_dtype
        ]
        if own:
            layer.register_forward_hook(partial(_release, own))


def _release(tensors: list[StoredTensor], *unused: object) -> None:
    for tensor in tensors:
        tensor.release()


class Reference:
    """The unpatched module of a component in one arithmetic. A context manager that frees it.

    Args:
        component: What to compute.
        weights: Dtype the weights are rounded to first.
        arithmetic: Dtype of the computation.
        layout: `channels_last` makes PyTorch take other kernels for convolutions and normalisations.
    """

    def __init__(
        self,
        component: Component,
        *,
        weights: str = "float32",
        arithmetic: str = "float32",
        layout: str = "contiguous",
    ) -> None:
        component = component.reference or component
        self.layout = layout
        self.component = component
        self.arithmetic = arithmetic
        self.dtype = getattr(torch, arithmetic)
        self.module: nn.Module = component.reference_module(
            torch.float32 if arithmetic == "float64" else self.dtype
        )
        if weights not in ("float32", arithmetic):
            _round_weights(self.module, component, getattr(torch, weights))
        elif component.parameters > BIG:
            _release_when_used(self.module, component)

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        """One forward pass.

        Args:
            inputs: By the component's names; floating ones are cast to the arithmetic (a timestep
                keeps float32, as diffusers computes its embedding there).

        Returns:
            Outputs by the component's names, in the arithmetic's dtype.
        """
        with self.mode():
            outputs = self.module(**self.cast(inputs))
        return {spec.name: tensor for spec, tensor in zip(self.component.outputs, outputs, strict=True)}

    def cast(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        """Floating inputs in the arithmetic's dtype; those of rank 0 (timesteps) and exact ones are left
        alone."""
        exact = {spec.name for spec in self.component.inputs if spec.exact}
        return {
            name: value.to(self.dtype)
            if value.is_floating_point() and value.dim() > 0 and name not in exact
            else value
            for name, value in inputs.items()
        }

    @contextmanager
    def mode(self) -> Iterator[None]:
        """The context in which the module computes in its arithmetic."""
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if self.layout == "channels_last":
                stack.enter_context(_ChannelsLast())
            if self.arithmetic == "float16":
                stack.enter_context(_FastHalfConvolutions())
            if self.arithmetic == "float64":
                before = torch.get_default_dtype()
                torch.set_default_dtype(torch.float64)
                stack.callback(torch.set_default_dtype, before)
                stack.enter_context(Exact())
                stack.enter_context(_WidenConvolutions())
            yield

    def close(self) -> None:
        """Drop the module and hand memory-mapped pages back to the system."""
        self.module = None  # type: ignore[assignment]
        if self.component.parameters > BIG:  # a collection costs half a second once torch is imported
            gc.collect()
        for tensor in self.component.reference_weights.values():
            mapped = tensor.file._map
            if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()
