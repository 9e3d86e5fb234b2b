"""Rotary positions as a look-up: the library's own numbers, and no double precision in the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from exporter import cache
from exporter.architectures import Size, components_of
from exporter.checkpoints import resolve
from exporter.graph import build
from exporter.graph.capture import capture
from exporter.graph.rotary import POSITIONS, rotary_by_table
from tests.families import make

AXES = (16, 56, 56)


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory):
    folder = make("flux", tmp_path_factory.mktemp("rotary") / "flux")
    return next(c for c in components_of(resolve(folder)) if c.name == "transformer")


def test_the_numbers_are_the_librarys_bit_for_bit() -> None:
    from diffusers.models.transformers.transformer_flux import FluxPosEmbed

    module = FluxPosEmbed(10000, AXES)
    ids = torch.stack([torch.zeros(POSITIONS), torch.arange(POSITIONS), torch.arange(POSITIONS).flip(0)], 1)
    expected = module(ids)
    with rotary_by_table():
        found = module(ids)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other)
    assert module(ids)[0].shape == (POSITIONS, sum(AXES))


def test_arithmetic_in_float32_would_not_be_as_good() -> None:
    """Why it is looked up: the angle itself does not fit."""
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    positions = torch.arange(128, dtype=torch.float32)
    given = {"theta": 10000, "use_real": True, "repeat_interleave_real": True}
    exact, _ = get_1d_rotary_pos_embed(56, positions, freqs_dtype=torch.float64, **given)
    plain, _ = get_1d_rotary_pos_embed(56, positions, freqs_dtype=torch.float32, **given)
    assert float((exact - plain).abs().max()) > 1e-6


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_no_double_is_in_the_graph(transformer, dtype: str) -> None:
    with cache.off():
        graph = build(transformer, dtype=dtype)
    double = int(ir.DataType.DOUBLE)
    casts = [n.attributes["to"].as_int() for n in graph.model.graph if n.op_type == "Cast"]
    kinds = [v.dtype for v in graph.model.graph.initializers.values()]
    assert graph.route == "direct"
    assert double not in casts and ir.DataType.DOUBLE not in kinds


def test_without_the_table_there_would_be_one(transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib

    from exporter.graph import capture as module

    monkeypatch.setattr(module, "rotary_by_table", contextlib.nullcontext)
    program = capture(transformer, static=None, dtype="float32", attention="decomposed")
    kinds = {n.meta["val"].dtype for n in program.graph.nodes if isinstance(n.meta.get("val"), torch.Tensor)}
    assert torch.float64 in kinds


def test_a_place_beyond_the_table_is_an_error_and_no_picture(transformer, tmp_path: Path) -> None:
    from onnxruntime import InferenceSession
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

    from exporter.graph import write

    session = InferenceSession(str(write(build(transformer), tmp_path)[0]))
    inputs = transformer.example_inputs(Size(1, 64, 64, 8))
    given = {name: value.numpy() for name, value in inputs.items()}
    assert np.isfinite(session.run(None, given)[0]).all()
    given["img_ids"] = given["img_ids"] + POSITIONS
    with pytest.raises(InvalidArgument, match="out of data bounds"):
        session.run(None, given)
