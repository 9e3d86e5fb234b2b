"""A component's module, captured as a `torch.export` program without a weight in memory."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from exporter.architectures.base import INNER, Component, Size, TensorSpec
from exporter.errors import ExporterError, UnsupportedError
from exporter.graph.attention import Attention, attention_as
from exporter.graph.masks import plain_masks
from exporter.graph.positions import positions_at_any_size
from exporter.graph.rotary import rotary_by_table

if TYPE_CHECKING:
    import torch
    from torch import nn


def capture(
    component: Component, *, static: Size | None, dtype: str, attention: Attention
) -> torch.export.ExportedProgram:
    """Trace the component over fake weights.

    Args:
        component: What to trace.
        static: Bake this size; None keeps every symbolic dim of the inputs dynamic.
        dtype: `float32` or `float16`: of weights and arithmetic.
        attention: Form of the attention operator.

    Raises:
        UnsupportedError: torch cannot trace the module.
    """
    import torch

    wanted = getattr(torch, dtype)
    module = fake_weights(component.meta_module(), wanted)
    inputs = component.example_inputs(static or trace_size(component))
    inputs = {s.name: inputs[s.name].to(wanted) if is_cast(s) else inputs[s.name] for s in component.inputs}
    dynamic: dict[str, Any] | None = None
    if static is None:
        free = torch.export.Dim.DYNAMIC
        dynamic = {
            spec.name: {axis: free for axis, dim in enumerate(spec.dims) if isinstance(dim, str)}
            for spec in component.inputs
        }
    import torch._dynamo.config

    # With symbolic sizes the cache of fake operators rarely hits; asking it costs a fifth of the capture.
    uncached = torch._dynamo.config.patch(fake_tensor_cache_enabled=False)
    with ExitStack() as stack:
        for each in (attention_as(attention), rotary_by_table(), positions_at_any_size(), plain_masks()):
            stack.enter_context(each)
        stack.enter_context(quiet())
        stack.enter_context(uncached)
        stack.enter_context(torch.no_grad())  # or regions without gradients become programs of their own
        try:
            return torch.export.export(module, (), kwargs=inputs, dynamic_shapes=dynamic, strict=False)
        except ExporterError:
            raise
        except Exception as error:  # torch raises dozens of types here
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UnsupportedError(
                f"torch.export cannot trace the {component.name} ({component.class_name}): {first}"
            ) from error


def is_cast(spec: TensorSpec) -> bool:
    """Whether an input is computed in the graph's dtype.

    Scalars and per-row vectors (timestep, guidance) stay float32: float16 holds no fraction above
    1024, and models compute their sine and cosine in float32 anyway. So do `exact` inputs.
    """
    return spec.dtype.startswith("float") and len(spec.dims) > 1 and not spec.exact


def trace_size(component: Component) -> Size:
    """A size whose dims all differ, so that no two of them are taken for the same symbol."""
    native = component.native
    return Size(
        batch=2,
        height=native.height,
        width=native.width + 64 * native.factor,  # stays a multiple of whatever the model divides by
        sequence=max(native.sequence - 6, 3),
        factor=native.factor,
    )


def fake_weights(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Replace meta parameters by fake ones on the CPU (shape and dtype without storage), in `dtype`.

    Floating buffers are real and are cast.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        for owner in module.modules():
            for name, parameter in owner._parameters.items():
                if parameter is not None:
                    kind = dtype if parameter.is_floating_point() else parameter.dtype
                    empty = torch.empty(parameter.shape, dtype=kind)
                    owner._parameters[name] = torch.nn.Parameter(empty, requires_grad=False)
    for owner in module.modules():
        for name, buffer in owner._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                owner._buffers[name] = buffer.to(dtype)
    return module


def module_of(node: torch.fx.Node) -> str:
    """Path of the module that a traced node belongs to, as diffusers names it."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values()]
    return clean_path(paths[-1]) if paths else ""


NO_STACK = "_empty_nn_module_stack"
"""What torch writes where a node (a size taken from an input) belongs to no module."""


def clean_path(path: str) -> str:
    """`inner.down_blocks.0@1` → `down_blocks.0`."""
    path = path.split("@")[0]
    if path.startswith(NO_STACK):
        return ""
    return "" if path + "." == INNER else path.removeprefix(INNER)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch's exporters say about themselves; errors still raise."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
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
