"""What a `torch.export` program tells: sizes it was proven for, and which value is whose module's output."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from exporter.architectures.base import Component

INNER = "inner"
UNBOUNDED = 1 << 40
"""Sizes above this are sympy's infinity."""


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


def module_outputs(graph: torch.fx.Graph) -> dict[str, str]:
    """Module path (as the library names it) → name of the node that leaves it, in order of execution.

    A node carries the modules around it. The values computed inside and used outside are what a module
    returns; one is listed when that is exactly one floating tensor and the module runs once.
    """
    inside: dict[torch.fx.Node, frozenset[str]] = {}
    calls: dict[str, set[str]] = defaultdict(set)
    order: list[tuple[torch.fx.Node, list[str]]] = []
    for node in graph.nodes:
        paths: list[str] = []
        for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
            clean = path.split("@")[0].removeprefix(INNER).removeprefix(".")
            if clean and path.startswith(INNER):
                paths.insert(0, clean)  # the innermost first: a module returns after its children
                calls[clean].add(key)
        inside[node] = frozenset(paths)
        order.append((node, paths))
    escaping: dict[str, list[torch.fx.Node]] = defaultdict(list)
    for node, paths in order:
        for path in paths:
            if is_activation(node) and any(path not in inside[user] for user in node.users):
                escaping[path].append(node)
    return {
        path: nodes[0].name for path, nodes in escaping.items() if len(nodes) == 1 and len(calls[path]) == 1
    }


def is_activation(node: torch.fx.Node) -> bool:
    """A floating tensor that is computed and not a scalar: not a shape, not a weight."""
    import torch

    value = node.meta.get("val")
    return (
        node.op == "call_function"
        and isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.dim() > 0
    )
