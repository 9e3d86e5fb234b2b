"""Whole timesteps are looked up, so that no arithmetic can round them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from exporter.architectures import Size
from exporter.targets.openvino.timestep import TABLE, tabulate
from tests.targets.openvino.conftest import Exported, arrays, relative
from tests.targets.openvino.test_runner import has_bfloat16

SIZE = Size(batch=2, height=64, width=64, sequence=77, factor=8)
STEPS = 1000


def at(exported: Exported, step: int, hint: str = "f32") -> tuple[np.ndarray, torch.Tensor]:
    """The UNet's output for a timestep: the artifact's and PyTorch's."""
    component = exported.components["unet"]
    inputs = component.example_inputs(SIZE, seed=3) | {"timestep": torch.tensor(float(step))}
    with torch.no_grad():
        truth = component.reference_module()(**inputs)[0]
    with exported.open("unet", precision_hint=hint) as runner:
        return runner.run(arrays(runner, inputs))["out_sample"], truth


@pytest.mark.parametrize("step", [0, 1, 501, STEPS])
def test_every_timestep_of_the_scheduler_is_there(exported: Exported, step: int) -> None:
    assert relative(*at(exported, step)) < 1e-5


@pytest.mark.parametrize("step", [-1, STEPS + 1, 2**31 - 1])
def test_any_other_gives_nan_and_no_picture(exported: Exported, step: int) -> None:
    assert np.isnan(at(exported, step)[0]).all()


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no bfloat16")
def test_bfloat16_does_not_round_the_timestep(exported: Exported) -> None:
    """501 is not a bfloat16; 1 is."""
    exact, rounded = (relative(*at(exported, step, "bf16")) for step in (1, 501))
    assert 1e-3 < rounded < 1.5 * exact


def test_the_table_is_float32_whatever_the_weights_are(exported: Exported, half: Exported) -> None:
    import openvino

    for artifact in (exported, half):
        model = openvino.Core().read_model(artifact.root / artifact.records["unet"].entry)
        (table,) = [n for n in model.get_ops() if n.get_friendly_name() == TABLE]
        values = table.get_data()
        assert values.dtype == np.float32 and values.shape == (STEPS + 2, 32)
        assert np.isfinite(values[:-1]).all() and np.isnan(values[-1]).all()


def test_bisecting_sees_the_value_that_was_looked_up(exported: Exported) -> None:
    component = exported.components["unet"]
    inputs = component.example_inputs(SIZE) | {"timestep": torch.tensor(981.0)}
    expected = component.reference_module().inner.time_proj(torch.tensor([981.0, 981.0]))
    with exported.open("unet") as runner:
        found = runner.intermediates(arrays(runner, inputs), ["time_proj"])["time_proj"]
    assert relative(found, expected) < 1e-6


def test_a_sinusoid_of_more_than_the_timestep_is_left_alone() -> None:
    import openvino
    from openvino import opset13 as ops

    timestep = ops.parameter([1], np.int64, name="timestep")
    other = ops.parameter([2, 1], np.float32, name="other")
    for node, name in ((timestep, "timestep"), (other, "other")):
        node.output(0).set_names({name})
    product = ops.sin(ops.multiply(ops.convert(timestep, "f32"), other))
    product.output(0).set_names({"sinusoid"})
    model = openvino.Model([ops.result(product)], [timestep, other])
    assert not tabulate(model, "sinusoid", 10)
    assert {n.get_type_name() for n in model.get_ops()} >= {"Sin", "Multiply"}
