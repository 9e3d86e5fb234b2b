"""A run of an exported program that keeps the values of some nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


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
