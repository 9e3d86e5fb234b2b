"""What the tests of quantised weights share, whatever the format."""

from __future__ import annotations

import numpy as np
import torch

from exporter.architectures.base import Component
from exporter.targets.base import Runner


def with_the_files_weights(component: Component, runner: Runner) -> torch.nn.Module:
    """The reference with the weights that stand for the checkpoint's in a file."""
    module = component.reference_module()
    parameters = dict(module.named_parameters())
    for weight in runner.quantised():
        parameters[f"inner.{weight.name}"].data = torch.from_numpy(np.array(weight.values))
    return module
