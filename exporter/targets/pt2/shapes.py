"""The sizes an exported program holds for: what torch noted of them, and what of that is no matter."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from exporter.architectures.base import Component, Size

UNBOUNDED = 1 << 40
"""Sizes above this are sympy's infinity."""


def admit_ones(
    component: Component, module: nn.Module, program: torch.export.ExportedProgram, limit: float
) -> bool:
    """Let the program take sizes at which a dim somewhere inside it is 1.

    torch looks at whether a size is 1 wherever it works out strides, and guards what it saw: a UNet of
    four levels would refuse pictures so low that its last level has one row. No operator of ours does
    anything else there. So of the guards only multiples and largest sizes are kept, if then the program
    computes what the module does at the smallest sizes there are; otherwise all stay.

    Args:
        module: What the program was made from.
        limit: Relative L2 up to which both are the same.

    Returns:
        Whether they were let go.
    """
    import torch
    from torch.utils._sympy.value_ranges import ValueRanges

    guards, ranges = program._guards_code, program._range_constraints
    steps = limits(component, program)[1]
    program._guards_code = [
        f"L['{spec.name}'].size()[{axis}] % {steps[str(dim)]} == 0"
        for spec in component.inputs
        for axis, dim in enumerate(spec.dims)
        if str(dim) in steps
    ]
    program._range_constraints = {
        symbol: ValueRanges(2, bounds.upper)  # which torch itself takes for no bound
        for symbol, bounds in ranges.items()
    }
    factor = component.native.factor
    height, width = (steps.get(f"latent_{side}", 1) * factor for side in ("height", "width"))
    sizes = [(1, height, width, 2), (2, height, 3 * width, 3), (1, 2 * height, width, 1)]
    loose = program.module()
    with torch.no_grad():
        if all(
            agrees(component, module, loose, type(component.native)(*size, factor), limit) for size in sizes
        ):
            return True
    program._guards_code, program._range_constraints = guards, ranges
    return False


def agrees(component: Component, module: nn.Module, program: nn.Module, size: Size, limit: float) -> bool:
    """Whether the program gives what the module does: shapes, and values within `limit`."""
    device = next(module.parameters()).device
    inputs = [value.to(device) for value in component.example_inputs(size, seed=1).values()]
    try:
        found = program(*inputs)
    except (RuntimeError, AssertionError, ValueError):  # a shape that is baked in after all
        return False
    expected = module(*inputs)
    return len(found) == len(expected) and all(
        a.shape == b.shape and float((a - b).double().norm() / b.double().norm()) <= limit
        for a, b in zip(found, expected, strict=True)
    )


def limits(
    component: Component, program: torch.export.ExportedProgram
) -> tuple[dict[str, tuple[int, int | None]], dict[str, int]]:
    """The sizes that the program holds for, as torch proved it.

    Returns:
        Symbol → smallest and largest size; symbol → what the size must be a multiple of.

    torch starts symbols at 2, because 0 and 1 may behave differently; `admit_ones` tries 1. A largest
    size comes from code that branches on it: diffusers' upsampling copies its input from a batch of 64 on.
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
