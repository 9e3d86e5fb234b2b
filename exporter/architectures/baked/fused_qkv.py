"""One matrix product for queries, keys and values: projections joined row by row.

The reference is the library's module as it is, with three projections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from exporter.architectures.baked import variant
from exporter.architectures.base import Component
from exporter.architectures.weightless import no_weights
from exporter.checkpoints import StoredTensor
from exporter.checkpoints.derived import joined

if TYPE_CHECKING:
    from torch import nn

JOINED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}
"""The library's name of a joined projection → those that it is made of, in order of its rows."""


def bake(component: Component) -> list[Component]:
    """The denoiser with joined projections, whose weights are made of the stored ones on their way."""
    build = component.construct

    def construct() -> Any:
        return fuse(build())

    def derive(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
        with no_weights():
            names = list(dict(construct().named_parameters()))
        before = component.derive(stored)
        made = {name: _weight(name, before) for name in names}
        return {name: tensor for name, tensor in made.items() if tensor is not None}

    fused = replace(
        component,
        construct=construct,
        derive=derive,
        variant=variant(component, "fused-qkv"),
        reference=component.reference or component,
    )
    return [fused]


def fuse(module: nn.Module) -> nn.Module:
    """Join the projections of a module of the library by its own method, and drop those that were joined."""
    import torch

    with torch.no_grad():
        module.fuse_qkv_projections()  # type: ignore[operator]
    for attention in list(module.modules()):
        for whole, parts in JOINED.items():
            if isinstance(getattr(attention, whole, None), torch.nn.Module):
                for part in parts:
                    attention._modules.pop(part, None)
    return module


def _weight(name: str, stored: Mapping[str, StoredTensor]) -> StoredTensor | None:
    """A parameter of the fused module; None where the checkpoint lacks it, or a part of it."""
    owner, _, kind = name.rpartition(".")
    path, _, whole = owner.rpartition(".")
    if name in stored or whole not in JOINED:
        return stored.get(name)
    parts = [stored.get(f"{path}.{part}.{kind}") for part in JOINED[whole]]
    return joined(name, [part for part in parts if part is not None]) if all(parts) else None
