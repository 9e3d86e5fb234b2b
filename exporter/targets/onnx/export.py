"""Writes one component as ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exporter.architectures.base import Component, TensorSpec
from exporter.artifact import SizeRecord, TensorRecord
from exporter.hashing import Follower
from exporter.progress import Progress
from exporter.targets.base import (
    Estimate,
    ExportedComponent,
    Options,
    Static,
    component_shapes,
    component_size,
)
from exporter.targets.onnx.compression import compress, forget
from exporter.targets.onnx.names import model_path
from exporter.targets.onnx.options import OnnxOptions
from exporter.targets.quantisation import stored_dtype

ITEM_BYTES = {"float32": 4, "float16": 2}
QUANTISED_BYTES = 1.05
"""A weight at most: a code of eight bits, and its share of a scale; what is not quantised is little."""
GRAPH_BYTES_A_WEIGHT = 2 << 10
"""Of the graph file: the nodes around one weight. SDXL's UNet has 1680 weights and takes 3 MB."""
PEAK_MEMORY = 1 << 30
"""Measured peak of a whole export is below this whatever the size of the model: weights are streamed."""


def estimate(component: Component, options: Options) -> Estimate:
    """Disk: weights and graph. Memory: the libraries, the graph and one tensor at a time."""
    largest = max((tensor.numel for tensor in component.weights.values()), default=0)
    item: float = ITEM_BYTES[options.dtype]
    if getattr(options, "weights", None) is not None:
        item = QUANTISED_BYTES
    graphs = max(1, len(options.sizes()))
    return Estimate(
        disk=int(component.parameters * item) + graphs * len(component.weights) * GRAPH_BYTES_A_WEIGHT,
        memory=PEAK_MEMORY + 2 * largest * 4,  # as stored, and cast or transposed
    )


def export(
    component: Component, options: OnnxOptions, staging: Path, progress: Progress
) -> ExportedComponent:
    """Write `<component>/model.onnx` and `model.onnx_data` below `staging`.

    Sizes after the first become `model_BxHxW.onnx`, with their weights in the same `model.onnx_data`.

    Raises:
        UnsupportedError: A module or operator has no route; the message names both.
        CheckpointError: Weights are missing, do not fit the config, or do not fit float16.
    """
    from exporter import graph

    def place(further: Static | None = None) -> Path:
        name = model_path(component.name, options.naming, options.dtype, further, options.weights)
        return staging / name

    shared = graph.SharedData(f"{place().name}_data")
    written: dict[tuple[tuple[int, ...], ...], tuple[graph.Graph, Path]] = {}
    files: list[Path] = []
    sizes = []
    compression: dict[str, Any] = {}
    with Follower(place().parent / shared.name) as follower:
        for static in options.sizes() or (None,):
            shapes = component_shapes(component, static)
            if shapes not in written:
                built = graph.build(
                    component,
                    static=component_size(component, static) if static else None,
                    dtype=options.dtype,
                    attention=options.attention,
                    opset=options.opset,
                    progress=progress,
                )
                if options.weights is not None:
                    compression = compress(built, component, options)
                path = place(None if static in (None, options.static) else static)
                paths = graph.write(
                    built,
                    path.parent,
                    name=path.name,
                    shared=shared,
                    reached=follower.reached,
                    progress=progress,
                )
                files += [path for path in paths if path not in files]
                written[shapes] = built, paths[0]
                forget()
            built, entry = written[shapes]
            if static is not None:
                inputs, outputs = _records(built.inputs), _records(built.outputs)
                relative = entry.relative_to(staging).as_posix()
                sizes.append(SizeRecord(static=static, entry=relative, inputs=inputs, outputs=outputs))
    built, entry = next(iter(written.values()))
    return ExportedComponent(
        entry=entry,
        files=tuple(files),
        inputs=tuple(_records(built.inputs)),
        outputs=tuple(_records(built.outputs)),
        details={
            "opset": built.opset,
            "attention": built.attention,
            "arithmetic": built.dtype,
            "route": built.route,
            "nodes": len(built.model.graph),
            **({"compression": compression} if compression else {}),
        },
        sizes=tuple(sizes) if len(sizes) > 1 else (),
        dtype=stored_dtype(compression),
        digests={follower.path: follower.digest},
    )


def _records(specs: Sequence[TensorSpec]) -> list[TensorRecord]:
    return [TensorRecord(name=spec.name, dtype=spec.dtype, dims=list(spec.dims)) for spec in specs]
