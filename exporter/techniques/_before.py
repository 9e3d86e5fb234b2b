"""A pipeline as it was, for when a technique fails in the middle of its own work."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from exporter.techniques.base import Undo, modules, originals, together

CONTAINERS = (dict, OrderedDict, list, set)
"""Only these themselves: what is derived from them may be frozen."""


def remember(pipeline: Any) -> Undo:
    """Remember everything that a technique may change of a pipeline: the attributes and classes of its
    networks' modules, their hooks and weights, and the pipeline's own attributes.

    Nothing is copied but references, so this costs little more than a walk over the modules.

    Returns:
        What puts all of it back, whatever was done in between.
    """
    parts = [part for network in modules(pipeline) for part in network.modules()]
    undos: list[Undo] = [_attributes(part) for part in dict.fromkeys(parts)]
    undos.append(_attributes(pipeline))
    return together([*undos, originals(modules(pipeline))])


def _attributes(owner: Any) -> Undo:
    """Of one object: its class, its attributes, what lies in those that are containers (`_modules`,
    `_forward_hooks` …), and diffusers' registry of hooks, which wraps `forward` itself."""
    kind, values = type(owner), dict(vars(owner))
    undos = [_contents(value) for value in values.values() if type(value) in CONTAINERS]
    if (registry := values.get("_diffusers_hook")) is not None:
        undos.append(_attributes(registry))

    def undo() -> None:
        if type(owner) is not kind:
            owner.__class__ = kind
        vars(owner).clear()
        vars(owner).update(values)
        for each in undos:
            each()

    return undo


def _contents(container: Any) -> Undo:
    kept = container.copy()

    def undo() -> None:
        container.clear()
        add: Callable[[Any], None] = container.extend if isinstance(container, list) else container.update
        add(kept)

    return undo
