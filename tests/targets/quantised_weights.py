"""What the tests of quantised weights share, whatever the format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from exporter.architectures.base import Component
from exporter.targets.base import RoundedActivation, Runner


def with_the_files_weights(component: Component, runner: Runner) -> torch.nn.Module:
    """The reference with the weights that stand for the checkpoint's in a file."""
    module = component.reference_module()
    parameters = dict(module.named_parameters())
    for weight in runner.quantised():
        parameters[f"inner.{weight.name}"].data = torch.from_numpy(np.array(weight.values))
    return module


def decibels_kept(
    component: Component, runner: Runner, inputs: dict[str, torch.Tensor], given: dict[str, np.ndarray]
) -> tuple[float, float]:
    """SQNR of the first output against the reference with the file's weights: of PyTorch with the file's
    roundings of activations, and of the file as it runs.

    Args:
        given: The same inputs as the runner takes them.
    """
    module = with_the_files_weights(component, runner)
    with torch.no_grad():
        truth = module(**inputs)[0].double().numpy()
        layers = dict(module.named_modules())
        for each in runner.rounded():
            layers[f"inner.{each.name.removesuffix('.weight')}"].register_forward_pre_hook(_rounding(each))
        emulated = module(**inputs)[0].double().numpy()
    output = runner.run(given)[component.outputs[0].name]
    one, two = (20 * np.log10(np.linalg.norm(truth) / np.linalg.norm(truth - x)) for x in (emulated, output))
    return float(one), float(two)


def _rounding(each: RoundedActivation) -> Callable[[Any, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]:
    step = (each.high - each.low) / (each.levels - 1)

    def hook(_: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        number = torch.round((given[0].clamp(each.low, each.high) - each.low) / step)
        return (number * step + each.low, *given[1:])

    return hook
