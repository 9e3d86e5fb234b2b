"""Exports one component with `torch.export`, and compiles it with AOTInductor where asked to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import UnsupportedError
from exporter.progress import Progress
from exporter.targets.base import Estimate, ExportedComponent
from exporter.targets.pt2.compile import check_compiler, compile_package, compiled_for
from exporter.targets.pt2.options import Pt2Options
from exporter.targets.torch_module import (
    DECLARATION,
    GRANULE,
    ITEM_BYTES,
    Declaration,
    cast_at_border,
    declaration_text,
    one_line,
    prepare,
    quiet,
    records,
    torch_device,
)

if TYPE_CHECKING:
    import torch

    from exporter.architectures.base import Component, Size

ENTRY = "model.pt2"
MB = 1_000_000
OVERHEAD_DISK = 8 * MB
OVERHEAD_MEMORY = 900 * MB
UNBOUNDED = 1 << 40
"""Sizes above this are sympy's infinity."""


def estimate(component: Component, options: Pt2Options) -> Estimate:
    """Disk: the weights. Memory: the weights as mapped or cast; nothing is run. Compiling takes them
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

    device = torch_device(options.device if options.compile else "cpu")
    if options.compile:
        check_compiler()
    progress.start(f"{component.name}: exporting")
    program, size, free = capture(component, options, device)
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
) -> tuple[torch.export.ExportedProgram, Size, set[str]]:
    """The program, the size it was exported at, and the dims that stay symbols.

    Raises:
        UnsupportedError: torch cannot export the module.
    """
    import torch

    from exporter.targets.base import component_size

    native = component.native
    if options.static:
        size = component_size(component, options.static)
    else:  # dims that all differ, so that no two of them are taken for one symbol
        size = type(native)(
            2, native.height, native.width + GRANULE * native.factor, max(native.sequence - 6, 3),
            native.factor,
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
        with quiet(), torch.no_grad():
            program = torch.export.export(module, example, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # torch raises dozens of types here
        raise UnsupportedError(
            f"torch.export cannot export the {component.name} ({component.class_name}): {one_line(error)}"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # lines of code with the folders of this machine
    specs = (*component.inputs, *component.outputs)
    free = {dim for spec in specs for dim in spec.dims if isinstance(dim, str)}
    return program, size, set() if options.static else free


def limits(
    component: Component, program: torch.export.ExportedProgram
) -> tuple[dict[str, tuple[int, int | None]], dict[str, int]]:
    """The sizes that the program holds for, as torch proved it.

    Returns:
        Symbol → smallest and largest size; symbol → what the size must be a multiple of.

    torch starts symbols at 2, because 0 and 1 may behave differently; our modules do not tell 1 apart,
    which the verifier tries. A largest size comes from code that branches on it: diffusers' upsampling
    copies its input from a batch of 64 on.
    """
    import sympy
    import torch

    found: dict[str, tuple[int, int | None]] = {}
    steps: dict[str, int] = {}
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for name, spec in zip(program.graph_signature.user_inputs, component.inputs, strict=True):
        value = nodes[str(name)].meta["val"]
        for dim, symbol in zip(spec.dims, value.shape, strict=True):
            if not isinstance(dim, str) or not isinstance(symbol, torch.SymInt):
                continue
            step = divisor(symbol)
            if step > 1:
                steps[dim] = step
            bounds = program.range_constraints.get(symbol.node.expr)
            if bounds is None:
                continue
            low, high = int(bounds.lower), bounds.upper
            # A number, or one of two infinities (sympy's and torch's own) that will not be converted to one.
            bounded = isinstance(high, int | sympy.Integer) and int(high) < UNBOUNDED
            found[dim] = (1 if low <= 2 else low, int(high) if bounded else None)
    return found, steps


def divisor(symbol: torch.SymInt) -> int:
    """What a size must be a multiple of, by the guards that torch noted when code asked for its remainder."""
    from torch.utils._sympy.functions import Mod, PythonMod

    step = 1
    for guard in symbol.node.shape_env.guards:
        for term in guard.expr.atoms(Mod, PythonMod) if guard.expr.func.__name__ == "Equality" else ():
            sides = set(guard.expr.args)
            if sides == {term, 0} and term.args[0] == symbol.node.expr and term.args[1].is_Integer:
                step = math.lcm(step, int(term.args[1]))
    return step
