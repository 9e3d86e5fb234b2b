"""The sizes an exported program holds for: what of torch's notes on them is no matter."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from exporter.targets.traced import limits

if TYPE_CHECKING:
    import torch
    from torch import nn

    from exporter.architectures.base import Component, Size


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
    dims = {dim for spec in component.inputs for dim in spec.dims}
    least = component.multiple if {"image_tokens", "latent_height"} <= dims else 1  # or there is no token
    height, width = (math.lcm(steps.get(f"latent_{side}", 1), least) * factor for side in ("height", "width"))
    sizes = [(1, height, width, 2), (2, height, 3 * width, 3), (1, 2 * height, width, 1)]
    loose = program.module()
    with torch.no_grad():
        if all(agrees(component, module, loose, _at(component, *size), limit) for size in sizes):
            return True
    program._guards_code, program._range_constraints = guards, ranges
    return False


def _at(component: Component, batch: int, height: int, width: int, sequence: int) -> Size:
    return replace(component.native, batch=batch, height=height, width=width, sequence=sequence)


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
