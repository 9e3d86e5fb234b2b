"""Exports one component: `model.stablehlo`, a `jax.export` program, beside `weights.safetensors`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.architectures.base import origin
from exporter.artifact import TensorRecord
from exporter.errors import UnsupportedError
from exporter.progress import Progress
from exporter.targets.base import Estimate, ExportedComponent, component_size
from exporter.targets.stablehlo.options import StableHloOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporter.architectures.base import Component, Size, TensorSpec

ENTRY = "model.stablehlo"
WEIGHTS = "weights.safetensors"
DECLARATION = "exporter"
"""Key of the header of the weights: what the dims of inputs and outputs are called."""
MB = 1_000_000
OVERHEAD_DISK = 8 * MB
OVERHEAD_MEMORY = 1200 * MB
"""Of torch, JAX and the traced program; no weight is in memory."""
ITEM_BYTES = {"float32": 4, "bfloat16": 2}
BORDER = {"int64": "int32"}
"""See `exporter.targets.stablehlo.program.BORDER`."""


def estimate(component: Component, options: StableHloOptions) -> Estimate:
    """Disk: the weights and the program. Memory: a fixed amount, for weights are streamed.

    Raises:
        UnsupportedError: Sizes of the component follow from each other, and none is baked.
    """
    if options.static is None and (component.class_name == "ControlNetModel" or _has_shares(component)):
        raise UnsupportedError(
            f"JAX cannot tell that sizes of the {component.name}'s inputs are halves or multiples of each "
            f"other, as those around a ControlNet are.",
            hint="Add --static 1xHEIGHTxWIDTH.",
        )
    weights = component.parameters * ITEM_BYTES[options.dtype]
    largest = max((tensor.numel for tensor in component.weights.values()), default=0) * 4
    return Estimate(disk=weights + OVERHEAD_DISK, memory=OVERHEAD_MEMORY + 2 * largest)


def _has_shares(component: Component) -> bool:
    return any(isinstance(d, str) and origin(d)[1] > 1 for spec in component.inputs for d in spec.dims)


def export(
    component: Component, options: StableHloOptions, staging: Path, progress: Progress
) -> ExportedComponent:
    """Write `<component>/model.stablehlo` and `<component>/weights.safetensors` below `staging`.

    Raises:
        UnsupportedError: torch cannot trace the module, or an operator has no lowering; both are named.
        CheckpointError: Weights are missing or do not fit the config.
    """
    import jax

    from exporter.targets.stablehlo.capture import captured
    from exporter.targets.stablehlo.program import lower
    from exporter.targets.stablehlo.weights import write_weights

    size = component_size(component, options.static) if options.static else None
    progress.start(f"{component.name}: tracing", 2)
    traced = captured(component, size, options.dtype)
    progress.update(1, "lowering to StableHLO")
    program = lower(component, traced, size, options.dtype, options.platforms)
    progress.done()
    folder = staging / component.name
    folder.mkdir(parents=True, exist_ok=True)
    entry, weights = folder / ENTRY, folder / WEIGHTS
    entry.write_bytes(bytes(program.serialize()))
    inputs, outputs = records(component.inputs, size), records(component.outputs, size)
    declared = {
        "inputs": {record.name: record.dims for record in inputs},
        "outputs": {record.name: record.dims for record in outputs},
        "ranges": {name: list(pair) for name, pair in traced.ranges.items()},
        "multiples": dict(traced.multiples),
    }
    write_weights(weights, traced.weights, {DECLARATION: json.dumps(declared)}, progress)
    details: dict[str, Any] = {
        "kind": "jax.export",
        "arithmetic": options.dtype,
        "platforms": list(program.platforms),
        "calling_convention_version": program.calling_convention_version,
        "call": [record.name for record in inputs],
        "ranges": declared["ranges"],
        "multiples": declared["multiples"],
        "jax": jax.__version__,
    }
    return ExportedComponent(
        entry=entry, files=(entry, weights), inputs=tuple(inputs), outputs=tuple(outputs), details=details
    )


def records(specs: Sequence[TensorSpec], size: Size | None) -> list[TensorRecord]:
    """Specs as the program has them: sizes as symbols, or numbers where baked; ids as int32."""
    return [
        TensorRecord(
            name=spec.name,
            dtype=BORDER.get(spec.dtype, spec.dtype),
            dims=list(spec.dims if size is None else spec.shape(size)),
        )
        for spec in specs
    ]
