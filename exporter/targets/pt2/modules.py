"""Which value of an exported program is the output of which module, and a run that keeps them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

INNER = "inner"


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


def run_keeping(
    module: torch.fx.GraphModule, inputs: Sequence[torch.Tensor], names: Sequence[str]
) -> dict[str, torch.Tensor]:
    """One run, node by node, that keeps the values of the named nodes."""
    from torch.fx import Interpreter, Node

    kept: dict[str, torch.Tensor] = {}
    wanted = set(names)

    class Keeping(Interpreter):
        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            if n.name in wanted:
                kept[n.name] = value.clone()  # a later operator may work in place
            return value

    Keeping(module).run(*inputs, enable_io_processing=False)
    return kept
