"""Which value of the graph is the output of which module: what bisecting a fault needs."""

from __future__ import annotations

import ast
from collections import defaultdict
from typing import TYPE_CHECKING

from exporter.architectures.baked.deciding import is_decision
from exporter.graph.capture import clean_path

if TYPE_CHECKING:
    import onnx_ir as ir

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch's exporter notes the modules around a node."""
SCOPES_META = "exporter.scopes"
"""Where the direct route does: clean paths, the outermost first."""


def scopes_of(node: ir.Node) -> list[str]:
    """Paths of the modules around a node as torch wrote them, the outermost first."""
    if SCOPES_META in node.meta:
        return list(node.meta[SCOPES_META])
    raw = node.metadata_props.get(SCOPES)
    return ast.literal_eval(raw)[:-1] if raw else []  # the last entry is the node itself


def module_outputs(model: ir.Model) -> dict[str, ir.Value]:
    """Module path → the value that leaves it, in order of execution.

    A module's nodes carry its path. The values computed inside and used outside are what it returns.
    A module is listed when that is exactly one floating-point tensor (or a decision) and the module runs
    once: for one that returns several, or that is called twice under one name, no value is *the* output.

    Args:
        model: As translated, before any optimisation has moved or merged nodes.
    """
    calls: dict[str, set[str]] = defaultdict(set)
    node_paths: list[tuple[ir.Node, list[str]]] = []
    for node in model.graph:
        scopes = scopes_of(node)
        paths: list[str] = []
        for scope in scopes:
            path = clean_path(scope)
            if path:
                calls[path].add(scope)
                paths.insert(0, path)  # the innermost first: a module returns after its children
        node_paths.append((node, paths))
    inside = {node: frozenset(paths) for node, paths in node_paths}

    escaping: dict[str, list[ir.Value]] = defaultdict(list)
    graph_outputs = set(model.graph.outputs)
    for node, paths in node_paths:
        for value in node.outputs:
            users = [inside.get(use.node, frozenset()) for use in value.uses()]
            for path in paths:
                if value in graph_outputs or any(path not in user for user in users):
                    escaping[path].append(value)
    result = {}
    for path, values in escaping.items():
        tensors = [value for value in values if _is_activation(value) or is_decision(path)]
        if len(tensors) == 1 and len(calls[path]) == 1:
            result[path] = tensors[0]
    return result


def _is_activation(value: ir.Value) -> bool:
    """A floating-point tensor; not a shape computed on the way, and not a scalar."""
    if value.dtype is None or not value.dtype.is_floating_point():
        return False
    return value.shape is None or len(value.shape) > 0
