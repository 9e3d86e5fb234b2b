"""Which graph a step of the pipeline calls, where a technique made several of one denoiser.

The same object drives the reference, its twin and the artifact. Needs PyTorch at import.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import torch

Tensors = Mapping[str, torch.Tensor]
Ask = Callable[[str, Tensors], Tensors]
"""Runs a component by its name on more tensors than it may take; gives its outputs by name."""


class Steps:
    """Counts the steps of a picture by the timesteps that come: within one they never rise."""

    def __init__(self) -> None:
        self.last, self.calls, self.step = float("-inf"), -1, 0

    def at(self, timestep: torch.Tensor) -> int:
        """The number of a step, 0 the first: of the first call with this timestep, as a scheduler of second
        order has some twice."""
        now = float(timestep.reshape(-1)[0])
        if now > self.last:
            self.calls = -1
        self.calls += 1
        if now != self.last:
            self.step = self.calls
        self.last = now
        return self.step


class Driver(ABC):
    """Stands between a pipeline and the graphs of its denoiser.

    Attributes:
        further: Components besides the denoiser itself.
        least_steps: Of a picture that calls each of them.
    """

    further: tuple[str, ...]
    least_steps = 2

    def __init__(self) -> None:
        self.steps = Steps()
        self.kept: torch.Tensor | None = None

    def begin(self) -> None:
        """Another picture begins, whatever its first timestep is."""
        self.steps, self.kept = Steps(), None

    def begins_with(self, scheduler: Any) -> None:
        """Begin whenever a scheduler of diffusers is given its timesteps.

        Rising timesteps do not tell a picture that starts from another (`strength`) and has the last step
        only from the end of the one before.
        """
        given: Callable[..., Any] = scheduler.set_timesteps

        @wraps(given)  # pipelines look for its parameters
        def set_timesteps(*arguments: Any, **named: Any) -> Any:
            self.begin()
            return given(*arguments, **named)

        scheduler.set_timesteps = set_timesteps

    def __call__(self, ask: Ask, inputs: Tensors) -> torch.Tensor:
        """The denoiser's first output for a call of the pipeline."""
        step = self.steps.at(inputs["timestep"])
        if step == 0:
            self.kept = None
        return self.drive(ask, inputs, step)

    @abstractmethod
    def drive(self, ask: Ask, inputs: Tensors, step: int) -> torch.Tensor:
        """The same, told which step it is; `kept` is None at the first one."""


class DeepCaching(Driver):
    """The whole UNet every `interval` steps, the shallow one with what it kept in between."""

    further = ("unet_shallow",)

    def __init__(self, interval: int, branch: int) -> None:
        super().__init__()
        self.interval = interval

    def drive(self, ask: Ask, inputs: Tensors, step: int) -> torch.Tensor:
        if self.kept is not None and step % self.interval:
            return ask("unet_shallow", {**inputs, "cached": self.kept})["out_sample"]
        found = ask("unet", inputs)
        self.kept = found["cached"]
        return found["out_sample"]


class Gating(Driver):
    """The whole UNet until the step `gate`, then the one that takes what cross-attention made before.

    Guidance is told by its two halves being the same latents after a step of both: from the gate on one of
    them is computed. (Before any step two prompts without guidance may have the same noise.)
    """

    further = ("unet_gated",)

    def __init__(self, gate: int) -> None:
        super().__init__()
        self.gate = gate
        self.least_steps = gate + 2

    def drive(self, ask: Ask, inputs: Tensors, step: int) -> torch.Tensor:
        if self.kept is None or step < self.gate:
            found = ask("unet", inputs)
            if step == self.gate - 1:
                self.kept = found["cross_attention"]
            return found["out_sample"]
        sample = inputs["sample"]
        rows = sample.shape[0]
        guided = rows % 2 == 0 and torch.equal(*sample.chunk(2))
        if guided and self.kept.shape[0] == rows:
            self.kept = torch.stack(self.kept.chunk(2)).mean(0)
        given = {**inputs, "cross_attention": self.kept}
        if not guided:
            return ask("unet_gated", given)["out_sample"]
        half = {n: v[rows // 2 :] if v.dim() and v.shape[0] == rows else v for n, v in given.items()}
        out = ask("unet_gated", half)["out_sample"]
        return torch.cat([out, out])


DRIVERS: Mapping[str, Callable[..., Driver]] = {"deep-cache": DeepCaching, "t-gate": Gating}


def driver_of(techniques: Sequence[tuple[str, Mapping[str, Any]]]) -> Driver | None:
    """The driver that one of the techniques needs, fresh; None where the denoiser is one graph."""
    for name, options in techniques:
        if name in DRIVERS:
            return DRIVERS[name](**options)
    return None
