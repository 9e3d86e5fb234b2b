"""How large the numbers inside a component get in a real run: what float16 has to hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from exporter.architectures.base import INNER

if TYPE_CHECKING:
    from torch import nn

    from exporter.architectures.base import Component
    from exporter.checkpoints import Checkpoint
    from exporter.parity.cases import Inputs

SENTINEL = 1e30
"""From here on a number is a mask ("minus infinity"), which every dtype writes in its own way."""


SINUSOIDS = ("time_proj", "add_time_proj")
"""Modules that compute in float32 whatever the model's dtype is."""


@dataclass(frozen=True)
class Peak:
    """The largest magnitude among all values that a component computed.

    Attributes:
        where: Path of the innermost module that computed it, as diffusers names it.
        cases: How many captured inputs were run.
    """

    value: float
    where: str
    cases: int


def _is_activation(tensor: torch.Tensor) -> bool:
    """Not a number (a timestep), not an index, not empty."""
    return tensor.is_floating_point() and tensor.dim() > 1 and tensor.numel() > 0


class _Watch(TorchDispatchMode):
    """Notes the largest magnitude among the outputs of all operators, and the module it was in."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.where = 0.0, ""
        self.path: list[str] = [""]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.path[-1].rpartition(".")[2] in SINUSOIDS:
            return result
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor) and _is_activation(tensor):
                low, high = torch.aminmax(tensor.detach())
                value = max(abs(float(low)), abs(float(high)))
                if value >= SENTINEL:  # only then is it worth the time to look at the others
                    rest = tensor.detach().abs()
                    value = float(rest[rest < SENTINEL].max()) if bool((rest < SENTINEL).any()) else 0.0
                if not (value <= self.value):  # a NaN is kept, and is no number that float16 holds
                    self.value, self.where = value, self.path[-1]
        return result


def peak_of(component: Component, cases: Sequence[Inputs]) -> Peak:
    """Run the float32 reference on the cases and find the largest magnitude."""
    from exporter.parity.arithmetic import Reference

    watch = _Watch()
    with Reference(component) as reference:
        handles = _follow(reference.module, watch)
        for case in cases:
            with watch:
                reference(case.tensors)
        for handle in handles:
            handle.remove()
    return Peak(watch.value, watch.where, len(cases))


def _follow(module: nn.Module, watch: _Watch) -> list[Any]:
    handles = []
    for path, layer in module.named_modules():
        name = "" if f"{path}." == INNER else path.removeprefix(INNER)

        def enter(*unused: object, name: str = name) -> None:
            watch.path.append(name)

        def leave(*unused: object) -> None:
            watch.path.pop()

        handles.append(layer.register_forward_pre_hook(enter))
        handles.append(layer.register_forward_hook(leave))
    return handles


def measure_peaks(
    checkpoint: Checkpoint,
    components: Sequence[Component],
    size: Sequence[int] | None,
    settings: Mapping[str, Any],
    *,
    cache: Path | Literal["user"] | None = "user",
    tick: Callable[[str], None] = lambda text: None,
) -> dict[str, Peak]:
    """Peaks of components from a run of the reference: the one that `verify` makes, kept in the same cache.

    Args:
        components: Those to measure.
        size: `(pictures, height, width)` where shapes are baked; None is the native size.
        settings: Keyword arguments of `verify`: prompts, steps, samples and seed count.
        tick: Called with a label after every part of the work.

    Returns:
        By component name. Components that the run does not call get plausible random inputs.
    """
    from exporter.parity.cases import captured, synthetic
    from exporter.parity.painting import supported
    from exporter.parity.reference import paint_reference, plan_of

    painted = None
    if supported(checkpoint):
        plan = plan_of(
            checkpoint,
            size,
            prompts=settings.get("prompts"),
            steps=int(settings.get("steps", 8)),
            seed=int(settings.get("seed", 0)),
        )
        painted = paint_reference(checkpoint, plan, cache=cache, tick=tick)
    found = {}
    for component in components:
        cases = captured(component, painted, int(settings.get("samples", 4))) if painted else []
        found[component.name] = peak_of(component, cases or synthetic(component))
        tick(component.name)
    return found
