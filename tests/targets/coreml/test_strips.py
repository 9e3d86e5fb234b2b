"""Attention a strip at a time computes what it computes whole, checked, rounded and noted the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter.errors import ArtifactError
from exporter.targets.coreml.interpreter import Peaks, load, strips
from exporter.targets.coreml.interpreter.rounding import PIECE, round_to
from exporter.targets.coreml.interpreter.strips import Strip
from tests.mutation.formats.coreml import edit, operations
from tests.targets.coreml.inference import ct

TOKENS, KEYS, WIDTH = 37, 11, 8


def split(mb: Any, x: Any, keys: np.ndarray, values: np.ndarray) -> Any:
    """As `--attention split_einsum` has it: (batch, channels, 1, tokens); the queries come second."""
    scores = mb.einsum(values=(keys, x), equation="bkhc,bchq->bkhq", name="scores")
    weights = mb.softmax(x=mb.mul(x=scores, y=np.float16(0.3)), axis=1, name="weights")
    return mb.einsum(values=(values, weights), equation="bchk,bkhq->bchq", name="y")


def spelled(mb: Any, x: Any, keys: np.ndarray, values: np.ndarray) -> Any:
    """As `--attention original` has it below iOS 18: (batch, heads, tokens, width)."""
    turned = keys.transpose(0, 2, 1, 3)
    scores = mb.matmul(x=x, y=turned, transpose_x=True, transpose_y=True, name="scores")
    weights = mb.softmax(x=mb.mul(x=scores, y=np.float16(0.3)), axis=-1, name="weights")
    return mb.matmul(x=weights, y=values.transpose(0, 2, 3, 1), name="y")


@pytest.fixture(scope="module", params=[split, spelled])
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from coremltools.converters.mil import Builder as mb  # noqa: N813
    from coremltools.converters.mil.mil import types

    rng = np.random.default_rng(0)
    keys = rng.standard_normal((2, KEYS, 1, WIDTH)).astype(np.float16)
    values = rng.standard_normal((2, WIDTH, 1, KEYS)).astype(np.float16)
    # `spelled` turns x in the product, so that one shape serves both
    shape = (2, WIDTH, 1, TOKENS) if request.param is not spelled else (2, 1, WIDTH, TOKENS)

    @mb.program(
        input_specs=[mb.TensorSpec(shape=shape, dtype=types.fp16)], opset_version=ct.target.iOS16
    )  # fmt: skip
    def program(x: Any) -> Any:
        return request.param(mb, x, keys, values)

    model = ct.convert(
        program, convert_to="mlprogram", skip_model_load=True, minimum_deployment_target=ct.target.iOS16
    )
    path = tmp_path_factory.mktemp("strips") / "attention.mlpackage"
    model.save(str(path))
    return path


def inputs(path: Path) -> dict[str, np.ndarray]:
    (feature,) = load(path).inputs
    return {"x": np.random.default_rng(1).standard_normal(feature.shape).astype(np.float16)}


@pytest.mark.parametrize("mode", ["exact", "emulate", "unrounded"])
@pytest.mark.parametrize("scores", [64, 400])
def test_strips_change_nothing(
    package: Path, monkeypatch: pytest.MonkeyPatch, mode: Any, scores: int
) -> None:
    noted: list[Peaks] = [Peaks(), Peaks()]
    given = inputs(package)
    if mode == "unrounded":
        given = {name: array.astype(np.float32) for name, array in given.items()}
    whole = load(package, mode=mode)
    assert not any(isinstance(item, Strip) for item in whole.program._plan)
    monkeypatch.setattr(strips, "SCORES", scores // 2)
    model = load(package, mode=mode)
    (strip,) = [item for item in model.program._plan if isinstance(item, Strip)]
    assert strip.count == TOKENS and len(strip.steps) == 4 and 1 <= strip.size < TOKENS
    expected = whole.predict(given, peaks=noted[0])
    found = model.predict(given, peaks=noted[1])
    limit = 2e-3 if mode != "unrounded" else 1e-6
    for name in expected:
        assert np.allclose(found[name].astype(float), expected[name].astype(float), rtol=limit, atol=limit)
    assert noted[0].values.keys() == noted[1].values.keys()
    for name, largest in noted[0].values.items():
        assert noted[1].values[name].peak == pytest.approx(largest.peak, rel=2e-3)
    kept = model.predict(given, keep=["weights"])
    assert kept["weights"].shape == tuple(strip.steps[2].outputs[0][2])
    again = model.predict(given)
    assert all(np.array_equal(again[name], found[name]) for name in found)


def test_every_value_of_a_strip_is_checked(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    copy = Path(shutil.copytree(package, tmp_path / "copy.mlpackage"))

    def declare(spec: Any) -> None:
        (op,) = [o for o in operations(spec) if o.type == "softmax"]
        op.outputs[0].type.tensorType.dimensions[0].constant.size = 5

    edit(copy, declare)
    monkeypatch.setattr(strips, "SCORES", 64)
    with pytest.raises(ArtifactError, match=r"softmax 'weights': 'weights' is declared \[5, "):
        load(copy).predict(inputs(package))


@pytest.mark.parametrize("size", [5, PIECE - 1, PIECE, 2 * PIECE + 3])
@pytest.mark.parametrize("layout", ["plain", "turned"])
def test_rounding(size: int, layout: str) -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(size, 2, generator=generator) * 100
    numbers[0, 0] = 1e6
    given = numbers.clone() if layout == "plain" else numbers.t().clone().t()
    expected = numbers.half().float()
    result = round_to(given, torch.float16, [torch.ones(1), (torch.ones(1),), "word"])
    assert torch.equal(result, expected) and result.data_ptr() == given.data_ptr()
    assert torch.isinf(result[0, 0])
    operand = numbers.clone()
    view = operand.reshape(-1)
    assert torch.equal(round_to(view, torch.float16, [operand]), expected.reshape(-1))
    assert torch.equal(operand, numbers), "what others still read is left alone"
    assert torch.equal(round_to(view, torch.float16, [(operand,)]), expected.reshape(-1))
    assert torch.equal(operand, numbers)
