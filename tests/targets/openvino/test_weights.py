"""Linear weights stay in the checkpoint's layout and under their own names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino")

from exporter.architectures import components_of
from exporter.checkpoints import resolve
from exporter.graph import build
from exporter.targets.openvino.weights import keep_linear_weights
from tests.targets.openvino.conftest import Exported


def test_every_linear_weight_is_written_as_it_is_stored(tiny: Path) -> None:
    component = next(c for c in components_of(resolve(tiny)) if c.name == "text_encoder")
    graph = build(component)
    turned = [name for name, recipe in graph.weights.items() if recipe.moves]
    assert turned, "nothing is transposed any more: this module can go"
    assert keep_linear_weights(graph) == len(turned)
    assert [name for name, recipe in graph.weights.items() if recipe.moves] == []
    for name in turned:
        assert graph.weights[name].shape == component.weights[f"inner.{name}"].shape
        value = graph.model.graph.initializers[name]
        assert value.shape is not None
        assert tuple(value.shape.numpy()) == graph.weights[name].shape
        assert all(use.node.op_type == "FusedMatMul" for use in value.uses())
    assert keep_linear_weights(graph) == 0


def test_weights_can_be_found_by_their_diffusers_name(exported: Exported) -> None:
    import openvino

    component = exported.components["unet"]
    model = openvino.Core().read_model(exported.root / exported.records["unet"].entry)
    constants = {
        node.get_friendly_name(): node for node in model.get_ops() if node.get_type_name() == "Constant"
    }
    matrices = {
        name.removeprefix("inner."): stored
        for name, stored in component.weights.items()
        if len(stored.shape) > 1
    }
    assert set(matrices) <= set(constants)
    for name, stored in matrices.items():
        assert np.array_equal(constants[name].get_data(), stored.load().numpy()), name
