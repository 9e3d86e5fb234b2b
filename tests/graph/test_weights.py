"""A recipe makes exactly the bytes that torch would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from exporter.checkpoints import StoredTensor
from exporter.checkpoints.safetensors_file import SafetensorsFile
from exporter.errors import CheckpointError
from exporter.graph import weights
from exporter.graph.weights import Recipe


def store(folder: Path, tensor: torch.Tensor, name: str = "w") -> StoredTensor:
    save_file({"before": torch.zeros(3), name: tensor.contiguous()}, folder / "w.safetensors")
    return SafetensorsFile(folder / "w.safetensors").tensors[name]


def written(recipe: Recipe) -> bytes:
    return b"".join(bytes(piece) for piece in recipe.pieces())


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", ["float32", "float16"])
@pytest.mark.parametrize("chunk", [weights.CHUNK, 64])
def test_casts_as_torch_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: torch.dtype, wanted: str, chunk: int
) -> None:
    monkeypatch.setattr(weights, "CHUNK", chunk)
    tensor = torch.randn(7, 33).to(stored)
    recipe = Recipe(store(tmp_path, tensor), wanted, (7, 33))
    expected = tensor.to(getattr(torch, wanted)).numpy().tobytes()
    assert written(recipe) == expected
    assert recipe.nbytes == len(expected)
    assert recipe.verbatim == (str(stored) == f"torch.{wanted}")


def test_layout_steps_are_applied_in_order(tmp_path: Path) -> None:
    tensor = torch.randn(4, 6)
    recipe = Recipe(store(tmp_path, tensor), "float32", (4, 6)).permuted((1, 0)).reshaped((6, 2, 2))
    assert recipe.shape == (6, 2, 2)
    assert recipe.moves and not recipe.verbatim
    result = np.frombuffer(written(recipe), np.float32).reshape(6, 2, 2)
    np.testing.assert_array_equal(result, tensor.T.reshape(6, 2, 2).numpy())
    np.testing.assert_array_equal(recipe.tensor().numpy(), result)


def test_a_reshape_alone_is_still_verbatim(tmp_path: Path) -> None:
    recipe = Recipe(store(tmp_path, torch.randn(4)), "float32", (4,)).reshaped((4, 1, 1))
    assert recipe.verbatim


@pytest.mark.parametrize("value", [70000.0, -7e4, float("inf"), float("nan")])
def test_what_float16_cannot_hold_is_an_error(tmp_path: Path, value: float) -> None:
    tensor = torch.ones(5)
    tensor[3] = value
    plain = Recipe(store(tmp_path, tensor), "float16", (5,))
    for recipe in (plain, plain.reshaped((5, 1)).permuted((1, 0))):
        with pytest.raises(CheckpointError, match="'w' holds values that float16 cannot"):
            written(recipe)


def test_a_file_that_shrank_is_an_error(tmp_path: Path) -> None:
    recipe = Recipe(store(tmp_path, torch.randn(1000)), "float32", (1000,))
    path = tmp_path / "w.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="ended while its weights were read"):
        written(recipe)
