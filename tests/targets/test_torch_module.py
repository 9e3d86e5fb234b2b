"""What TorchScript and `.pt2` share: the module they export."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

from exporter.architectures import components_of
from exporter.checkpoints import resolve
from exporter.targets.torch_module import cast_at_border, prepare
from tests.families import make


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_inputs_go_in_by_position_whatever_the_modules_own_order(tmp_path: Path, dtype: str) -> None:
    """A UNet of LCM has an input that comes after two it has not."""
    source = resolve(str(make("lcm", tmp_path / "lcm")))
    unet = next(part for part in components_of(source) if part.name == "unet")
    names = [spec.name for spec in unet.inputs]
    inputs = unet.example_inputs(unet.native)
    module = cast_at_border(prepare(unet, dtype), unet, dtype)
    assert list(inspect.signature(module.forward).parameters)[: len(names)] == names
    with torch.no_grad():
        (expected,) = unet.reference_module()(**inputs)
        (found,) = module(*inputs.values())
        (without,) = unet.reference_module()(**{k: v for k, v in inputs.items() if k != "timestep_cond"})
    limit = {"float32": 1e-6, "bfloat16": 5e-2}[dtype] * float(expected.norm())
    assert found.dtype == torch.float32
    assert float((found - expected).norm()) <= limit < float((without - expected).norm())
