"""WHAT: components that carry an acceleration technique: one more graph, or another one.

Each module here turns the components of a checkpoint into others. What they compute is judged against
`Component.reference`, the library's own module with the technique applied by other code than ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from exporter.architectures.base import DENOISERS, Component
from exporter.architectures.weightless import no_weights
from exporter.checkpoints import StoredTensor

Given = tuple[str, Mapping[str, Any]]
"""A technique's name and its options, all of them."""

WHERE = {
    "fused-qkv": "fused_qkv",
    "token-merging": "token_merging",
    "deep-cache": "deep_cache",
    "t-gate": "t_gate",
}
"""Technique → module of this package, whose `bake(component, **options)` gives what the denoiser becomes."""
IN_THE_RUNNER = frozenset({"vae-tiling", "vae-slicing"})
"""Techniques that change no component: `exporter run` does them."""

SEVERAL_GRAPHS = frozenset({"deep-cache", "t-gate"})
"""Techniques that make two graphs of the denoiser: `driving.DRIVERS` calls them."""


def bake(components: Sequence[Component], techniques: Sequence[Given]) -> list[Component]:
    """The components with the techniques in them; what stands for the denoiser keeps its place.

    Raises:
        UsageError: The denoiser cannot carry one with these options.
    """
    found = list(components)
    for name, options in techniques:
        if name not in IN_THE_RUNNER:
            make: Callable[..., list[Component]] = import_module(f"{__name__}.{WHERE[name]}").bake
            found = [new for old in found for new in (make(old, **options) if is_denoiser(old) else [old])]
    return found


def is_denoiser(component: Component) -> bool:
    """Whether it is the UNet or the transformer itself, not one of its further graphs."""
    return component.name in DENOISERS


def only_of(construct: Callable[[], Any], stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Of stored weights those that the module made by `construct` has."""
    with no_weights():
        names = dict(construct().named_parameters())
    return {name: tensor for name, tensor in stored.items() if name in names}


def variant(component: Component, name: str, **options: Any) -> str:
    """`Component.variant` after one more technique."""
    numbers = ", ".join(f"{key}={value!r}" for key, value in sorted(options.items()))
    return f"{component.variant} {name}({numbers})".strip()
