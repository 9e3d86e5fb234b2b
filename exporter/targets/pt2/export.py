"""Exports one component with `torch.export`, and compiles it with AOTInductor where asked to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import UnsupportedError
from exporter.graph.masks import plain_masks
from exporter.graph.places import places_by_number
from exporter.graph.positions import positions_at_any_size
from exporter.progress import Progress
from exporter.targets.base import Estimate, ExportedComponent
from exporter.targets.pt2.compile import check_compiler, compile_package, compiled_for
from exporter.targets.pt2.options import Pt2Options
from exporter.targets.pt2.shapes import admit_ones
from exporter.targets.torch_module import (
    DECLARATION,
    GRANULE,
    ITEM_BYTES,
    MB,
    SAME,
    Declaration,
    cast_at_border,
    declaration_text,
    one_line,
    prepare,
    quiet,
    records,
    torch_device,
)
from exporter.targets.traced import limits

if TYPE_CHECKING:
    import torch
    from torch import nn

    from exporter.architectures.base import Component, Size

ENTRY = "model.pt2"
OVERHEAD_DISK = 8 * MB
OVERHEAD_MEMORY = 900 * MB


def estimate(component: Component, options: Pt2Options) -> Estimate:
    """Disk: the weights. Memory: the weights as mapped or cast; little is run. Compiling takes them
    three times on disk and in memory: as they are, as an object file, and in the library.

    Raises:
        BackendMissing: `compile` without a C++ compiler or without the device.
    """
    if options.compile:
        check_compiler()
        torch_device(options.device)
    weights = component.parameters * ITEM_BYTES[options.dtype]
    copies = 3 if options.compile else 1
    return Estimate(disk=weights * copies + OVERHEAD_DISK, memory=weights * copies + OVERHEAD_MEMORY)


def export(component: Component, options: Pt2Options, staging: Path, progress: Progress) -> ExportedComponent:
    """Write `<component>/model.pt2` below `staging`.

    Raises:
        UnsupportedError: torch cannot export or compile the module.
        BackendMissing: `compile` without a C++ compiler or without the device.
        CheckpointError: Weights are missing or do not fit the config.
    """
    import torch

    component = component.fused()
    device = torch_device(options.device if options.compile else "cpu")
    if options.compile:
        check_compiler()
    progress.start(f"{component.name}: exporting")
    program, module, size, free = capture(component, options, device)
    if free:
        admit_ones(component, module, program, SAME[options.dtype])
    progress.done()
    found, steps = limits(component, program) if free else ({}, {})
    declaration = Declaration(
        inputs=records(component.inputs, size, free),
        outputs=records(component.outputs, size, free),
        dtype=options.dtype,
        ranges=found,
        multiples=steps,
        compiled=compiled_for(device) if options.compile else None,
    )
    entry = staging / component.name / ENTRY
    entry.parent.mkdir(parents=True, exist_ok=True)
    text = {DECLARATION: declaration_text(declaration)}
    if options.compile:
        progress.start(f"{component.name}: compiling")
        compile_package(program, entry, text, component.name)
    else:
        progress.start(f"{component.name}: writing {ENTRY}")
        with quiet():
            torch.export.save(program, str(entry), extra_files=text)
    progress.done()
    details: dict[str, Any] = {
        "kind": "AOTInductor package" if options.compile else "ExportedProgram",
        "arithmetic": options.dtype,
        "call": [spec.name for spec in component.inputs],
        "ranges": {name: list(sizes) for name, sizes in found.items()},
        "multiples": steps,
        "torch": torch.__version__,
    }
    return ExportedComponent(
        entry=entry,
        files=(entry,),
        inputs=tuple(declaration.inputs),
        outputs=tuple(declaration.outputs),
        details=details | (declaration.compiled or {}),
    )


def capture(
    component: Component, options: Pt2Options, device: torch.device
) -> tuple[torch.export.ExportedProgram, nn.Module, Size, set[str]]:
    """The program, the module it was made from, the size it was exported at, and the dims that stay symbols.

    Raises:
        UnsupportedError: torch cannot export the module.
    """
    import torch

    from exporter.targets.base import component_size

    native = component.native
    if options.static:
        size = component_size(component, options.static)
    else:  # dims that all differ, so that no two of them are taken for one symbol
        size = replace(
            native, batch=2, width=native.width + GRANULE * native.factor,
            sequence=max(native.sequence - 6, 3),
        )  # fmt: skip
    module = cast_at_border(prepare(component, options.dtype), component, options.dtype).to(device)
    example = tuple(value.to(device) for value in component.example_inputs(size).values())
    dynamic: tuple[dict[int, Any], ...] | None = None
    if options.static is None:
        dynamic = tuple(
            {axis: torch.export.Dim.DYNAMIC for axis, dim in enumerate(spec.dims) if isinstance(dim, str)}
            for spec in component.inputs
        )
    try:
        with (
            quiet(), torch.no_grad(), positions_at_any_size(table=False), places_by_number(fold=False),
            plain_masks(),
        ):  # fmt: skip
            program = torch.export.export(module, example, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # torch raises dozens of types here
        raise UnsupportedError(
            f"torch.export cannot export the {component.name} ({component.class_name}): {one_line(error)}"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # lines of code with the folders of this machine
    specs = (*component.inputs, *component.outputs)
    free = {dim for spec in specs for dim in spec.dims if isinstance(dim, str)}
    return program, module, size, set() if options.static else free
