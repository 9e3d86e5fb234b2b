"""The module of a recorded call: takes its tensors by name, and makes the call the pipeline would make."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from exporter.architectures.generic.trees import Tree, put_together, take_apart


class Recorded(nn.Module):
    """Inputs by name → outputs in order; constants of the recorded call are as they were.

    Args:
        inner: The library's own module, unpatched.
        method: Which of its methods is called.
        arguments: Tree of the keyword arguments.
        inputs: Names of the tensors in it, in order.
        outputs: Places of the tensors to return in the result.
    """

    def __init__(
        self, inner: nn.Module, method: str, arguments: Tree, inputs: list[str], outputs: list[str]
    ) -> None:
        super().__init__()
        self.inner = inner
        self.method, self.arguments = method, arguments
        self.places = list(outputs)
        names = list(inputs)

        def forward(*values: torch.Tensor, **named: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return self.call(dict(zip(names, values, strict=False)) | named)

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        forward.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])  # type: ignore[attr-defined]
        self.forward = forward

    def call(self, given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Make the recorded call with these tensors."""
        arguments: dict[str, Any] = put_together(self.arguments, given)
        result = getattr(self.inner, self.method)(**arguments)
        tensors: dict[str, torch.Tensor] = {}
        take_apart(result, "", tensors, None)
        return tuple(tensors[place] for place in self.places)
