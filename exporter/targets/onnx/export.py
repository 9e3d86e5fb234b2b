"""Writes one component as ONNX."""

from __future__ import annotations

from pathlib import Path

from exporter.architectures.base import Component, TensorSpec
from exporter.artifact import TensorRecord
from exporter.progress import Progress
from exporter.targets.base import Estimate, ExportedComponent, Options, component_size
from exporter.targets.onnx.options import OnnxOptions

ITEM_BYTES = {"float32": 4, "float16": 2}
GRAPH_BYTES_A_WEIGHT = 2 << 10
"""Of the graph file: the nodes around one weight. SDXL's UNet has 1680 weights and takes 3 MB."""
PEAK_MEMORY = 1 << 30
"""Measured peak of a whole export is below this whatever the size of the model: weights are streamed."""


def estimate(component: Component, options: Options) -> Estimate:
    """Disk: weights and graph. Memory: the libraries, the graph and one tensor at a time."""
    largest = max((tensor.numel for tensor in component.weights.values()), default=0)
    item = ITEM_BYTES[options.dtype]
    return Estimate(
        disk=component.parameters * item + len(component.weights) * GRAPH_BYTES_A_WEIGHT,
        memory=PEAK_MEMORY + 2 * largest * max(item, 4),  # as stored, and cast or transposed
    )


def export(
    component: Component, options: OnnxOptions, staging: Path, progress: Progress
) -> ExportedComponent:
    """Write `<component>/model.onnx` and `model.onnx_data` below `staging`.

    Raises:
        UnsupportedError: A module or operator has no route; the message names both.
        CheckpointError: Weights are missing, do not fit the config, or do not fit float16.
    """
    from exporter import graph

    built = graph.build(
        component,
        static=component_size(component, options.static) if options.static else None,
        dtype=options.dtype,
        attention=options.attention,
        opset=options.opset,
        progress=progress,
    )
    files = graph.write(built, staging / component.name, progress=progress)
    return ExportedComponent(
        entry=files[0],
        files=tuple(files),
        inputs=tuple(_record(spec) for spec in built.inputs),
        outputs=tuple(_record(spec) for spec in built.outputs),
        details={
            "opset": built.opset,
            "attention": built.attention,
            "arithmetic": built.dtype,
            "route": built.route,
            "nodes": len(built.model.graph),
        },
    )


def _record(spec: TensorSpec) -> TensorRecord:
    return TensorRecord(name=spec.name, dtype=spec.dtype, dims=list(spec.dims))
