"""Component → `openvino_model.xml` + `openvino_model.bin`.

The route is the leanest measured: a weight-free graph with weights streamed into a temporary ONNX
file, read by OpenVINO with its weights memory-mapped, written as IR; then the ONNX file is deleted.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from exporter.artifact import SizeRecord, TensorRecord
from exporter.errors import UnsupportedError
from exporter.memory import hand_back
from exporter.progress import Progress
from exporter.targets.base import (
    Estimate,
    ExportedComponent,
    Static,
    component_shapes,
    component_size,
    size_text,
)
from exporter.targets.openvino.options import OpenVinoOptions
from exporter.targets.openvino.sharing import share_constants
from exporter.targets.openvino.tidy import tidy
from exporter.targets.quantisation import stored_dtype

if TYPE_CHECKING:
    import onnx_ir as ir
    import openvino

    from exporter.architectures.base import Component, TensorSpec
    from exporter.graph import Graph
    from exporter.targets.base import Calibration
    from exporter.targets.quantisation import How

XML = "openvino_model.xml"
ATTENTION: Literal["fused"] = "fused"
OPSET = 21
"""The first in which a group normalisation is one operator; OpenVINO has one, too, of which its plugins make
what suits the device."""
SCRATCH = ".onnx"
"""Folder of the temporary graph inside the component's; hidden, removed in any case."""

SCALE_PLACE = ["runtime_options", "ACTIVATIONS_SCALE_FACTOR"]
"""Where OpenVINO's GPU plugin looks for it, as text; optimum-intel writes it to the same place."""
SMALLEST_SCALE = 8.0
FLOAT16_MAX = 65504.0
ROUNDED = "int8_activations"
"""Scheme in the manifest where activations are rounded as well as weights."""

MB = 1_000_000
OVERHEAD_DISK = 3 * MB  # the .xml of a full-size UNet
OVERHEAD_MEMORY = 900 * MB  # torch, the graph and OpenVINO themselves, measured on SD 1.5


def estimate(component: Component, options: OpenVinoOptions) -> Estimate:
    """Bytes on disk and peak resident memory of one export.

    The temporary float32 weights are counted in memory, for they are mapped; on disk they are gone
    at the end.
    """
    if options.activations is not None:
        from exporter.targets.openvino.activations import require_nncf

        require_nncf()
    item: float = 4 if options.dtype == "float32" else 2
    if options.weights is not None:
        item = 1.05  # a code of eight bits at most, and its share of a scale
    return Estimate(
        disk=int(component.parameters * item) + OVERHEAD_DISK,
        memory=component.parameters * 4 + OVERHEAD_MEMORY,
    )


def export(
    component: Component,
    options: OpenVinoOptions,
    staging: Path,
    progress: Progress,
    calibration: Calibration | None = None,
) -> ExportedComponent:
    """Write one component into `staging / component.name`.

    Sizes after the first become `openvino_model_BxHxW.xml`, whose weights lie in the first one's `.bin`.

    Args:
        calibration: With captured inputs, where activations are to be rounded.

    Raises:
        BackendMissing: nncf is not here, and activations are to be rounded.
        UnsupportedError: OpenVINO has no counterpart of an operator; the message names it.
    """
    folder = staging / component.name
    scratch = folder / SCRATCH
    entries: dict[tuple[tuple[int, ...], ...], Path] = {}
    sizes: list[tuple[Static, Path]] = []
    chosen: dict[str, How] = {}
    if calibration is not None:
        options = options.model_copy(update={"symmetric": True})
    try:
        for static in options.sizes() or (None,):
            shapes = component_shapes(component, static)
            if shapes not in entries:
                name = XML if static in (None, options.static) else f"openvino_model_{size_text(static)}.xml"
                shutil.rmtree(scratch, ignore_errors=True)
                scratch.mkdir(parents=True)
                entry, chosen = export_one(
                    component, options, static, folder / name, scratch, progress, calibration
                )
                if entries:
                    share_constants(folder / XML, entry)
                entries[shapes] = entry
            if static is not None:
                sizes.append((static, entries[shapes]))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    record = None
    if calibration is not None:
        record = {**calibration.record, "inputs": len(calibration.inputs[component.name])}
    return describe_files(staging, list(entries.values()), component, options, sizes, chosen, record)


def export_one(
    component: Component,
    options: OpenVinoOptions,
    static: Static | None,
    path: Path,
    scratch: Path,
    progress: Progress,
    calibration: Calibration | None = None,
) -> tuple[Path, dict[str, How]]:
    """Write one `.xml` and its `.bin`, dynamic or baked; tells how its weights are quantised, if they are."""
    import openvino

    from exporter.targets.openvino.held_back import hold_back, put_back

    source, modules = write_graph(component, static, scratch, progress)
    progress.start(f"{component.name}: converting to OpenVINO")
    model = convert(source, component)
    hand_back(collect=False)
    held = hold_back(model)
    simplify(model)
    tidy(model, {name for names in modules.values() for name in names})
    rounded: set[str] = set()
    if calibration is not None:
        from exporter.targets.openvino.activations import round_activations, roundings

        progress.done()
        progress.start(f"{component.name}: calibrating activations")
        kept = put_back(model, held, "float32", scratch)
        model = round_activations(model, component, calibration.inputs[component.name])
        rounded = {each.name for each in roundings(model)}
        held = hold_back(model)
        del kept
    chosen: dict[str, How] = {}
    tensors: list[openvino.Tensor] = []
    if options.weights is not None:
        from exporter.targets.openvino.compression import compress, planned

        chosen = planned(held, component, options, rounded)
        tensors = compress(model, held, component, chosen, scratch)
    rest = [each for each in held if each.name not in chosen]
    tensors += put_back(model, rest, options.dtype, scratch)
    finish_model(model, component, options, modules)
    hand_back(collect=False)
    progress.done()
    progress.start(f"{component.name}: writing {path.name}")
    openvino.save_model(model, path, compress_to_fp16=False)
    del model, held, rest, tensors
    hand_back()
    progress.done()
    return path, chosen


def scale_for(peak: float) -> float:
    """The smallest power of two from 8 on that brings a peak within float16; 2^20 where none would."""
    scale = SMALLEST_SCALE
    while not (peak / scale <= FLOAT16_MAX) and scale < 2.0**20:
        scale *= 2
    return scale


def write_graph(
    component: Component, static: Static | None, scratch: Path, progress: Progress
) -> tuple[Path, dict[str, list[str]]]:
    """The temporary ONNX file, always float32: OpenVINO rounds the weights itself while it saves.

    Returns:
        The file, and module path → names of the tensor that is the module's output, best first.
    """
    from exporter.graph import build, write
    from exporter.targets.openvino.weights import keep_linear_weights

    size = component_size(component, static) if static else None
    graph = build(
        component, static=size, dtype="float32", attention=ATTENTION, opset=OPSET, progress=progress
    )
    keep_linear_weights(graph)
    source = write(graph, scratch / component.name, link=True, progress=progress)[0]
    return source, same_values(graph)


def same_values(graph: Graph) -> dict[str, list[str]]:
    """Module path → its output's name, then the names of values that are equal to it.

    OpenVINO drops nodes that change nothing (a copy, a division by 1) together with the names of
    their outputs; the value they copied is still there.
    """
    values = {value.name: value for node in graph.model.graph for value in node.outputs}
    result = {}
    for path, name in graph.modules.items():
        names: list[str] = [name]
        while (earlier := copied(values[names[-1]].producer() if names[-1] in values else None)) is not None:
            names.append(earlier)
        result[path] = names
    return result


def copied(node: ir.Node | None) -> str | None:
    """The name of the value that a node returns unchanged, or None if it does compute something."""
    if node is None or not node.inputs or node.inputs[0] is None:
        return None
    if node.op_type in ("Mul", "Div"):
        factor = node.inputs[1]
        if factor is None or factor.const_value is None:
            return None
        numbers = factor.const_value.numpy()
        if numbers.size != 1 or not (numbers == 1).all():
            return None
    elif node.op_type != "Identity":
        return None
    return node.inputs[0].name


def convert(source: Path, component: Component) -> openvino.Model:
    """Read the ONNX file into an OpenVINO model as it stands; weights stay mapped from its data file.

    Raises:
        UnsupportedError: An operator has no counterpart; the message names it, and the module it is in.
    """
    from openvino.frontend import FrontEndManager

    from exporter.targets.openvino.model import plain

    try:
        reader = FrontEndManager().load_by_framework("onnx")
        return reader.convert(reader.load(str(source)))
    except Exception as error:  # frontends raise several unrelated types
        from exporter.targets.openvino.blame import cause, where_in

        at_fault = where_in(source, str(error))
        part = f"{at_fault} of the {component.name}" if at_fault else f"the {component.name}"
        why = cause(str(error)) or plain(error)
        raise UnsupportedError(f"OpenVINO cannot represent {part} ({component.class_name}): {why}") from error


def simplify(model: openvino.Model) -> None:
    """OpenVINO's common transformations, as `openvino.convert_model` applies them after reading."""
    from openvino._offline_transformations import apply_moc_transformations

    apply_moc_transformations(model, cf=False, smart_reshape=False)


def finish_model(
    model: openvino.Model,
    component: Component,
    options: OpenVinoOptions,
    modules: Mapping[str, Sequence[str]],
) -> None:
    """Inputs as the clients want them, names that depend on the graph only, and the module notes."""
    from exporter.architectures import is_generic
    from exporter.targets.openvino import model as surgery
    from exporter.targets.openvino import timestep

    # Whole numbers that count cells stay as they are: the graph computes with them as such.
    scalars = [
        spec.name for spec in component.inputs
        if not spec.dims and (spec.dtype == "float32" or spec.name == "timestep")
    ]  # fmt: skip
    # No client passes whole timesteps to a pipeline that was observed, and its scheduler may have others.
    time = "float32" if is_generic(component.checkpoint) else options.timestep
    for name in scalars:
        surgery.widen_scalar(model, name, time if name == "timestep" else "float32")
    if "timestep" in scalars:
        known = surgery.tensor_names(model)
        sinusoid = next((n for n in modules.get(timestep.MODULE, ()) if n in known), None)
        if time == "int64" and sinusoid is not None:
            timestep.tabulate(model, sinusoid, timestep.rows_of(component))
    surgery.drop_conversion_notes(model)
    surgery.name_nodes(model)
    known = surgery.tensor_names(model)
    present = {path: next((n for n in names if n in known), None) for path, names in modules.items()}
    if options.activations_scale is not None:
        model.set_rt_info(f"{options.activations_scale:.1f}", SCALE_PLACE)
    surgery.write_modules(model, {path: name for path, name in present.items() if name is not None})


def describe_files(
    staging: Path,
    entries: Sequence[Path],
    component: Component,
    options: OpenVinoOptions,
    sizes: Sequence[tuple[Static, Path]],
    chosen: Mapping[str, How],
    calibration: Mapping[str, Any] | None = None,
) -> ExportedComponent:
    """What was written, with inputs and outputs read back from the disk."""
    import openvino

    from exporter.targets.openvino import activations
    from exporter.targets.openvino.compression import described
    from exporter.targets.openvino.runner import describe, read_model

    declared: dict[Path, tuple[list[TensorRecord], list[TensorRecord]]] = {}
    compression: dict[str, Any] = {}
    for entry in entries:
        model = read_model(openvino.Core(), entry)
        declared[entry] = (
            [describe(port, claimed(component.inputs)) for port in model.inputs],
            [describe(port, claimed(component.outputs)) for port in model.outputs],
        )
        if chosen and not compression:
            compression = described(model, chosen, options)
            if calibration is not None:
                compression["scheme"] = ROUNDED
                compression["activations"] = activations.described(model, calibration)
        del model
    first, scale = entries[0], options.activations_scale
    records = []
    for static, entry in sizes if len(sizes) > 1 else ():
        path = entry.relative_to(staging).as_posix()
        inputs, outputs = declared[entry]
        records.append(SizeRecord(static=static, entry=path, inputs=inputs, outputs=outputs))
    return ExportedComponent(
        entry=first,
        files=(*entries, first.with_suffix(".bin")),
        inputs=tuple(declared[first][0]),
        outputs=tuple(declared[first][1]),
        details={
            "precision_hint": options.precision_hint,
            "attention": ATTENTION,
            "weights": "float32" if options.dtype == "float32" else f"{options.dtype}, vectors float32",
            **({} if scale is None else {"activations_scale_factor": scale}),
            **({"compression": compression} if compression else {}),
        },
        dtype=stored_dtype(compression),
        sizes=tuple(records),
    )


def claimed(specs: Sequence[TensorSpec]) -> list[TensorRecord]:
    """Specs as records: they lend their symbols to the dynamic dims, which the file leaves unnamed."""
    return [TensorRecord(name=spec.name, dtype=spec.dtype, dims=list(spec.dims)) for spec in specs]
