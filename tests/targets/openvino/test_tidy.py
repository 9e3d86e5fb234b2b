"""No node in the file that need not be there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino")

import openvino as ov
from openvino import opset13 as ops

from exporter.targets.openvino.tidy import tidy
from tests.targets.openvino.conftest import NAMES, Exported


def model_of(*steps: Any, shape: tuple[int, ...] = (-1, -1, 6)) -> Any:
    """A chain of operators behind one input `x`; the tensor behind step n is called `n`."""
    x = ops.parameter(ov.PartialShape(list(shape)), np.float32, name="x")
    value = x
    for number, step in enumerate(steps):
        value = step(value)
        value.output(0).set_names({str(number)})
    return ov.Model([value], [x])


def kinds(model: Any) -> list[str]:
    return [n.get_type_name() for n in model.get_ordered_ops() if n.get_type_name() != "Constant"][1:-1]


def run(model: Any, value: np.ndarray) -> np.ndarray:
    return ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(value)[0]


def add(values: Any) -> Any:
    return lambda x: ops.add(x, ops.constant(np.array(values, np.float32)))


def reshape(*target: int) -> Any:
    return lambda x: ops.reshape(x, ops.constant(np.array(target, np.int64)), True)


X = np.arange(60, dtype=np.float32).reshape(2, 5, 6)


@pytest.mark.parametrize("values", [0.0, [[[0.0] * 6]]], ids=["number", "bias"])
def test_a_sum_with_zeros_goes_and_its_name_stays(values: Any) -> None:
    model = model_of(ops.relu, add(values), ops.sigmoid)
    before = run(model, X)
    assert tidy(model, set()) == 1
    assert kinds(model) == ["Relu", "Sigmoid"]
    assert {"0", "1"} <= model.get_ordered_ops()[1].output(0).get_names()
    assert np.array_equal(run(model, X), before)


def test_an_output_keeps_its_one_name() -> None:
    model = model_of(ops.relu, add(0.0))
    assert tidy(model, set()) == 1
    assert model.outputs[0].get_names() == {"1"}


@pytest.mark.parametrize(
    "step",
    [add([0.0] * 5 + [1e-30]), add([[[[0.0]]]]), add([[[0.0]] * 5]), add([float("nan")])],
    ids=["not zero", "another rank", "tells a size", "nan"],
)
def test_any_other_sum_stays(step: Any) -> None:
    model = model_of(ops.relu, step, ops.sigmoid)
    assert tidy(model, set()) == 0
    assert kinds(model) == ["Relu", "Add", "Sigmoid"]


@pytest.mark.parametrize(
    "targets",
    [
        ((0, 0, 1, -1), (0, 1, -1, 0)),  # heads of attention with one head, as OpenVINO writes them
        ((0, -1), (0, 5, 6)),
        ((5, 12), (-1, 3, 4)),
        ((0, 0, 2, 3), (0, 0, -1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("fixed", [False, True])
def test_reshapes_in_a_row_are_one(targets: tuple[tuple[int, ...], ...], fixed: bool) -> None:
    steps = [reshape(*target) for target in targets]
    model = model_of(ops.relu, *steps, ops.sigmoid, shape=X.shape if fixed else (-1, -1, 6))
    before = run(model, X)
    assert tidy(model, set()) == 1
    assert kinds(model) == ["Relu", "Reshape", "Sigmoid"]
    after = run(model, X)
    assert after.shape == before.shape and np.array_equal(after, before)


def test_a_reshape_that_is_asked_for_stays() -> None:
    model = model_of(ops.relu, reshape(0, -1, 2), reshape(0, -1, 6))
    assert tidy(model, {"1"}) == 0
    assert tidy(model, {"2"}) == 1


def test_reshapes_that_no_constant_joins_stay() -> None:
    """Two sizes that are known only when it runs, neither of them at the place it had."""
    model = model_of(ops.relu, reshape(0, -1, 2), reshape(-1, 0, 1))
    assert tidy(model, set()) == 0
    assert run(model, X).shape == (4, 15, 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_norm_is_one_operator_and_sizes_are_asked_for_once(exported: Exported, name: str) -> None:
    from torch import nn

    entry = exported.root / exported.records[name].entry
    found = [node.get_type_name() for node in ov.Core().read_model(entry).get_ops()]
    half = f"{name.partition('_')[2]}." if name.startswith("vae") else ""  # its module has both
    parts = dict(exported.components[name].reference_module().named_modules())
    norms = [part for path, part in parts.items() if half in f"{path}."]
    groups = sum(isinstance(part, nn.GroupNorm) for part in norms)
    layers = sum(isinstance(part, nn.LayerNorm) for part in norms)
    assert (found.count("GroupNormalization"), found.count("MVN")) == (groups, layers)
    assert groups + layers
    assert found.count("ShapeOf") <= 2
