"""What TorchScript and `.pt2` share: the module they export."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

from exporter.architectures import components_of
from exporter.checkpoints import resolve
from exporter.conversion import convert, make_plan
from exporter.parity import verify
from exporter.targets.torch_module import cast_at_border, prepare
from tests.checkpoints import conftest as loras
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


@pytest.mark.parametrize("target", ["torchscript", pytest.param("pt2", marks=pytest.mark.full)])
def test_a_lora_is_in_the_weights(tiny: Path, tmp_path: Path, target: str) -> None:
    """Nothing is computed beside them, and the verdict is of the model with the LoRA."""
    file = loras.write(tmp_path / "style.safetensors", loras.kohya(loras.pairs()))
    plan = make_plan(
        str(tiny),
        target,
        tmp_path / "out",
        components=["unet"],
        intake={"loras": [f"{file}:0.5"]},
        verify=False,
    )
    root = convert(plan).artifact.root
    path = next((root / "unet").glob("model.pt*"))
    if target == "torchscript":
        names = [name for name, _ in torch.jit.load(str(path)).named_parameters()]
    else:
        names = list(torch.export.load(str(path)).state_dict)
    assert names and not any("lora" in name for name in names)
    report = verify(root, steps=1, samples=1, prompts=["a red star"], pipeline=False)
    assert report.verdict == "PASS", report.summary
