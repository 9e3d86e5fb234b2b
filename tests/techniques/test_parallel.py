"""Techniques of several processes and of a GPU: what can be said without them, and two over gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from exporter import recipes, techniques
from exporter.errors import BackendMissing, UsageError
from exporter.techniques._parallel import of_package
from exporter.techniques.cuda_graph import CudaGraph, _Recorder
from tests.techniques.split_over_processes import tiny_flux

FLUX = ("pytorch", ["transformer", "vae"], "FluxPipeline")


@pytest.mark.parametrize("name, package", [("xdit", "xfuser"), ("para-attention", "para_attn")])
def test_a_missing_package_names_its_extra(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.techniques.base.find_spec", lambda name: None)
    with pytest.raises(BackendMissing, match=f"needs {package}") as raised:
        techniques.check([name], *FLUX)
    assert raised.value.exit_code == 4 and raised.value.hint == f'pip install "exporter[{name}]"'


@pytest.mark.parametrize("name", ["xdit", "para-attention"])
def test_other_families_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="works on a transformer of FluxPipeline"):
        techniques.check([name], "pytorch", ["unet"], "StableDiffusionPipeline")
    with pytest.raises(UsageError, match="not on a Flux2Pipeline"):
        techniques.check([name], "pytorch", ["transformer"], "Flux2Pipeline")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("name", ["xdit", "cuda-graph"])
def test_without_a_gpu_it_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.techniques.base.find_spec", lambda name: object())
    with pytest.raises(BackendMissing, match="needs a CUDA device, and there is none here") as raised:
        techniques.check([name], *FLUX)
    assert raised.value.exit_code == 4


@pytest.mark.parametrize("name", ["xdit", "para-attention"])
def test_its_recipe_asks_for_it(name: str) -> None:
    asked = techniques.parse(recipes.read(recipes.find(f"pytorch/gpus-{name}")).techniques)
    assert [each.name for each in asked] == ["precision", name]


def test_one_process_is_told_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.techniques.base.find_spec", lambda name: object())
    with pytest.raises(UsageError, match="one process for each GPU") as raised:
        techniques.apply(tiny_flux(), ["para-attention"])
    assert "torchrun" in str(raised.value.hint)


def test_a_package_that_breaks_is_named_with_its_version() -> None:
    said = rf"pydantic \d.*torch {torch.__version__[:4]}.*no door"
    with pytest.raises(BackendMissing, match=said) as raised, of_package("xdit", "pydantic"):
        raise ImportError("no door")
    assert raised.value.exit_code == 4


def test_what_is_not_on_a_gpu_is_called_and_not_recorded() -> None:
    calls = []
    recorder = _Recorder(lambda x: calls.append(1) or x + 1, CudaGraph().kept)
    with torch.no_grad():
        assert torch.equal(recorder(torch.ones(2)), torch.full((2,), 2.0))
    assert calls == [1] and not recorder.graphs


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records a CUDA graph")
def test_a_recorded_graph_gives_the_numbers_of_the_call() -> None:
    layer = torch.nn.Linear(8, 8, device="cuda")
    recorder = _Recorder(layer, kept=1)
    with torch.no_grad():
        for rows in (2, 2, 3, 2):
            given = torch.randn(rows, 8, device="cuda")
            first, expected = recorder(given), layer(given)
            recorder(torch.zeros_like(given))  # must not change what was handed out
            assert torch.equal(first, expected)
    assert len(recorder.graphs) == 1


@pytest.mark.full
def test_two_processes_paint_what_one_paints() -> None:
    pytest.importorskip("para_attn", reason="the extra para-attention is not installed")
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
         "-m", "tests.techniques.split_over_processes", "para-attention"],
        cwd=root, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.count("the same, split, undone") == 2
