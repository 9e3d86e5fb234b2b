"""Modules that are built without their weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


@contextmanager
def no_weights() -> Iterator[None]:
    """Modules built inside get parameters on the meta device; buffers stay real."""
    from torch import nn

    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        original(module, name, param)
        if param is not None and not param.is_meta:
            module._parameters[name] = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)

    # Initialisers would spend seconds on values that are thrown away. What replaces them still works
    # on real tensors: a library first imported in here may keep it for good.
    inits = {
        name: getattr(nn.init, name)
        for name in ("kaiming_uniform_", "uniform_", "normal_", "xavier_uniform_")
    }

    def sparing(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        @functools.wraps(function)
        def initialise(tensor: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
            return tensor if tensor.is_meta else function(tensor, *args, **kwargs)

        return initialise

    nn.Module.register_parameter = register  # type: ignore[method-assign,assignment]
    for name, function in inits.items():
        setattr(nn.init, name, sparing(function))
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]
        for name, function in inits.items():
            setattr(nn.init, name, function)
