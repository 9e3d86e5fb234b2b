"""Both forms of GELU arrive in a package as they were: coremltools alone makes every one the exact form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from exporter.targets import coreml
from exporter.targets.coreml import frontend
from exporter.targets.coreml.layout import Feature, Layout
from exporter.targets.coreml.modules import number_nodes
from exporter.targets.coreml.options import CoremlOptions


@pytest.mark.parametrize("form", ["none", "tanh"])
def test_a_gelu_keeps_its_form(form: str, tmp_path: Path) -> None:
    feature = Feature("x", (1, 64), "float32")
    x = torch.linspace(-4, 4, 64)[None]
    program = torch.export.export(nn.GELU(approximate=form), (x,), strict=False).run_decompositions({})
    number_nodes(program)
    layout = Layout((feature,), (Feature("y", (1, 64), "float32"),))
    model, _ = frontend.convert(program, layout, CoremlOptions(dtype="float32"))
    frontend.save(model, tmp_path / "gelu.mlpackage")
    found = torch.from_numpy(
        coreml.load(tmp_path / "gelu.mlpackage", mode="exact").predict({"x": x.numpy()})["y"]
    )
    others = {
        other: (nn.functional.gelu(x, approximate=other) - found).abs().max() for other in ("none", "tanh")
    }
    assert others[form] < 1e-6
    assert max(others.values()) > 1e-4  # the two forms differ by more than is allowed
