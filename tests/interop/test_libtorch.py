"""A C++ program without Python opens `unet/model.pt` in the libtorch that PyTorch's wheel ships."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from exporter.architectures import Component, components_of
from exporter.artifact import Artifact
from exporter.checkpoints import resolve
from exporter.conversion import convert, make_plan

SOURCE = Path(__file__).parent / "libtorch" / "run_component.cpp"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here (g++, clang++, or CXX)"),
]


def compile_command(program: Path) -> list[str]:
    """The line for the README: includes and libraries lie in PyTorch's own folder."""
    root = Path(torch.__file__).parent
    abi = int(torch._C._GLIBCXX_USE_CXX11_ABI)
    return [
        str(COMPILER), "-std=c++20", "-O0", f"-D_GLIBCXX_USE_CXX11_ABI={abi}",
        str(SOURCE), "-o", str(program),
        f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}", f"-L{root / 'lib'}",
        f"-Wl,-rpath,{root / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("libtorch") / "run_component"
    built = subprocess.run(compile_command(out), capture_output=True, text=True, timeout=600)
    assert built.returncode == 0, built.stderr[-4000:]
    return out


@pytest.fixture(scope="module")
def artifact(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("libtorch-artifact") / "out"
    plan = make_plan(str(tiny), "torchscript", out, {}, components=["text_encoder", "unet"], verify=False)
    return convert(plan).artifact.root


def component(tiny: Path, name: str) -> Component:
    return next(c for c in components_of(resolve(str(tiny))) if c.name == name)


def run(
    program: Path, model: Path, inputs: dict[str, np.ndarray], folder: Path
) -> subprocess.CompletedProcess:
    paths = []
    for name, value in inputs.items():
        paths.append(folder / f"{name}.npy")
        np.save(paths[-1], value)
    command = [str(program), str(model), str(folder / "output"), *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={"OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("name", ["unet", "text_encoder"])
def test_libtorch_computes_what_pytorch_does(
    name: str, program: Path, artifact: Path, tiny: Path, tmp_path: Path
) -> None:
    found = component(tiny, name)
    inputs = found.example_inputs(found.native, seed=3)
    record = Artifact.open(artifact).manifest.component(name)
    arrays = {key: inputs[key].numpy() for key in record.details["call"]}
    ran = run(program, artifact / record.entry, arrays, tmp_path)
    assert ran.returncode == 0, ran.stderr
    with torch.no_grad():
        expected = found.reference_module()(**inputs)
    for number, value in enumerate(expected):
        ours = np.load(tmp_path / f"output{number}.npy")
        assert ours.shape == tuple(value.shape)
        error = np.linalg.norm(ours - value.numpy()) / np.linalg.norm(value.numpy())
        assert error <= 1e-5


def test_another_number_of_channels_is_refused(
    program: Path, artifact: Path, tiny: Path, tmp_path: Path
) -> None:
    found = component(tiny, "unet")
    inputs = {key: value.numpy() for key, value in found.example_inputs(found.native).items()}
    inputs["sample"] = np.zeros((2, 5, 8, 8), np.float32)
    ran = run(program, artifact / "unet/model.pt", inputs, tmp_path)
    assert ran.returncode == 1 and "channels" in ran.stderr
    assert not list(tmp_path.glob("output*"))
