"""The table of operations: one function each, its parameters named as MIL names them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Operation = Callable[..., Any]
OPERATIONS: dict[str, Operation] = {}


def operation(*names: str) -> Callable[[Operation], Operation]:
    """Register a function under one or more MIL names.

    It takes the operation's inputs by name (tensors, strings, tuples of tensors; absent ones are not
    given) and returns a tensor, or a tuple where the operation has several outputs.
    """

    def register(function: Operation) -> Operation:
        for name in names:
            OPERATIONS[name] = function
        return function

    return register


def number(value: Any) -> Any:
    """A constant of one element as a Python number."""
    return value.item() if isinstance(value, torch.Tensor) else value


def numbers(value: Any) -> list[int]:
    """A constant vector as Python integers."""
    if isinstance(value, torch.Tensor):
        return [int(item) for item in value.reshape(-1).tolist()]
    return [int(item) for item in value]


def flag(value: Any) -> bool:
    return bool(number(value))


def flags(value: Any, count: int) -> Sequence[bool]:
    """A constant vector of booleans; `count` times False when it is absent."""
    return [False] * count if value is None else [bool(item) for item in value.reshape(-1).tolist()]
