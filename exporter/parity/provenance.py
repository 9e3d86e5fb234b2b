"""Where the input of every module comes from: other modules, or the code of a parent.

One float32 pass of the reference. Operators that only move or add values are transparent; one that
computes (softmax, attention, an activation called as a function) marks its result as made by the code
of the module that is running.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable

    from exporter.parity.arithmetic import Reference, Tensors

TRANSPARENT = (
    "add", "sub", "cat", "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "clone", "expand",
    "slice", "split", "chunk", "unbind", "select", "unsqueeze", "squeeze", "_to_copy", "alias", "detach",
    "div", "mul", "contiguous", "unsafe_split", "split_with_sizes", "as_strided", "_reshape_alias",
)  # fmt: skip
ELEMENTWISE = (
    "SiLU",
    "Dropout",
    "Identity",
    "GELU",
    "GELUActivation",
    "QuickGELUActivation",
    "ReLU",
    "FP32SiLU",
)


@dataclass
class Trace:
    """What one pass showed.

    Attributes:
        order: Modules in the order in which they finished, each once; those called twice are left out.
        elements: Number of elements of a module's output.
        sources: Modules whose outputs enter a module, or `CODE` + path for a value made by that
            module's own code; the component's inputs count as neither. `THROUGH` +
            path for an activation on the way that runs several times and shows no output of its own.
    """

    CODE: ClassVar[str] = "code:"
    THROUGH: ClassVar[str] = "through:"

    order: list[str] = field(default_factory=list)
    elements: dict[str, int] = field(default_factory=dict)
    sources: dict[str, set[str]] = field(default_factory=dict)


class _Follow(TorchDispatchMode):
    def __init__(self, stack: list[str], transparent: list[bool]) -> None:
        super().__init__()
        self.stack, self.transparent = stack, transparent
        self.made_by: dict[int, set[str]] = {}
        self.alive: list[torch.Tensor] = []  # an id is only good while its tensor lives

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.removesuffix("_")
        if name in TRANSPARENT or self.transparent[-1]:
            origin = self.of((args, kwargs))
        else:
            origin = {Trace.CODE + self.stack[-1]}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.mark(tensor, set(origin))
        return result

    def of(self, values: Any) -> set[str]:
        found: set[str] = set()
        for value in tree_leaves(values):
            if isinstance(value, torch.Tensor):
                found |= self.made_by.get(id(value), set())
        return found

    def mark(self, tensor: torch.Tensor, origin: set[str]) -> None:
        self.made_by[id(tensor)] = origin
        self.alive.append(tensor)


def trace(reference: Reference, inputs: Tensors) -> Trace:
    """Run the reference once and note order, sizes and provenance.

    All intermediate tensors of one float32 pass are alive at its end.
    """
    from exporter.parity.bisect import first_tensor

    inner = reference.module.get_submodule("inner")
    result = Trace()
    calls: dict[str, int] = {}
    stack, transparent = [""], [False]
    follow = _Follow(stack, transparent)

    def enter(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            result.sources[name] = follow.of((args, kwargs))
            stack.append(name)
            transparent.append(type(module).__name__ in ELEMENTWISE)

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            stack.pop()
            through = transparent.pop()
            tensor = first_tensor(output)
            for leaf in tree_leaves(output):
                if isinstance(leaf, torch.Tensor):
                    passed = follow.of(leaf) | {Trace.THROUGH + name}
                    follow.mark(leaf, passed if through else {name})
            if tensor is not None and tensor.is_floating_point():
                result.order.append(name)
                result.elements[name] = tensor.numel()

        return hook

    handles = []
    for name, module in inner.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(enter(name), with_kwargs=True))
            handles.append(module.register_forward_hook(leave(name), with_kwargs=True))
    try:
        with follow:
            reference(inputs)
    finally:
        for handle in handles:
            handle.remove()
    result.order = [name for name in result.order if calls[name] == 1]
    once = {Trace.THROUGH + name for name, count in calls.items() if count == 1}
    result.sources = {name: origin - once for name, origin in result.sources.items()}
    return result
