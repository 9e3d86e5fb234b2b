"""Writing without copying, and in little memory."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from exporter import graph
from exporter.architectures import Component, Size, components_of
from exporter.checkpoints import resolve
from exporter.errors import CheckpointError
from exporter.graph import Graph

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def component(tiny: Path) -> Component:
    return next(c for c in components_of(resolve(tiny)) if c.name == "vae_decoder")


@pytest.fixture(scope="module")
def stored(component: Component) -> Graph:
    return graph.build(component, layout="stored")


def error(component: Component, path: Path) -> float:
    inputs = component.example_inputs(Size(1, 64, 128, 77), seed=3)
    with torch.no_grad():
        expected = component.reference_module()(**inputs)[0].numpy()
    session = onnxruntime.InferenceSession(str(path))
    result = session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
    return float(np.linalg.norm(result - expected) / np.linalg.norm(expected))


def test_the_stored_layout_copies_nothing(component: Component, stored: Graph, tmp_path: Path) -> None:
    files = graph.write(stored, tmp_path / "linked", link=True)
    assert [path.name for path in files] == ["model.onnx", "model.onnx_data", "weights_0.safetensors"]
    original = next(iter(component.weights.values())).file.path
    assert files[2].samefile(original)
    assert files[1].stat().st_size == 0
    assert error(component, files[0]) <= 2e-5
    model = onnx.load(files[0], load_external_data=False)
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer if t.external_data}
    assert shapes == {t.name: t.shape for t in component.weights.values()}


def test_where_no_link_can_be_made_bytes_are_copied(
    component: Component, stored: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, destination: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    files = graph.write(stored, tmp_path, link=True)
    assert [path.name for path in files] == ["model.onnx", "model.onnx_data"]
    assert files[1].stat().st_size >= stored.nbytes
    assert error(component, files[0]) <= 2e-5


def test_what_has_to_be_cast_is_copied_beside_the_link(component: Component, tmp_path: Path) -> None:
    files = graph.write(graph.build(component, layout="stored", dtype="float16"), tmp_path, link=True)
    assert len(files) == 2
    assert error(component, files[0]) <= 4e-3


MEMORY = """
import json, resource, sys
from pathlib import Path
from typing import Any
import torch
from safetensors.torch import save_file
from exporter.checkpoints.safetensors_file import SafetensorsFile
from exporter.graph.weights import Recipe, Scratch

path = Path(sys.argv[1])
tensors = SafetensorsFile(path).tensors
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
for warm in (torch.ones(600, 600).T.contiguous(), torch.ones(9).half()):
    pass
before, scratch, total = peak(), Scratch(), 0
with open(sys.argv[2], "wb", buffering=0) as sink:
    for tensor in tensors.values():
        for dtype in ("float32", "float16"):
            recipe = Recipe(tensor, dtype, tensor.shape)
            if len(tensor.shape) == 2:
                recipe = recipe.permuted((1, 0))
            for piece in recipe.pieces(scratch):
                total += sink.write(piece)
print(json.dumps({"grown_mb": peak() - before, "written": total}))
"""


def test_streaming_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    """320 MB of weights, of which the largest is 32 MB, grow the process by less than 100 MB."""
    header, offset = {}, 0
    shapes = [[2048, 4096]] * 8 + [[1 << 24]]
    for number, shape in enumerate(shapes):
        size = 4 * int(np.prod(shape))
        header[f"w{number}"] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as handle:
        handle.write(len(raw).to_bytes(8, "little") + raw)
        handle.truncate(8 + len(raw) + offset)  # a hole: zeros that take no disk
    command = [sys.executable, "-c", MEMORY, str(path), str(tmp_path / "out")]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert result["written"] == offset * 3 // 2
    assert result["grown_mb"] <= 100


def refusing(number: int) -> Any:
    def refuse(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("number", [errno.EXDEV, errno.ENOSYS])
def test_where_the_system_cannot_copy_the_bytes_are_the_same(
    component: Component, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    built = graph.build(component)
    first = graph.write(built, tmp_path / "copied")
    monkeypatch.setattr(os, "copy_file_range", refusing(number))
    second = graph.write(built, tmp_path / "written")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_full_disk_is_not_taken_for_a_system_that_cannot_copy(
    component: Component, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "copy_file_range", refusing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        graph.write(graph.build(component), tmp_path / "full")


def test_a_checkpoint_that_has_become_shorter_is_an_error(
    component: Component, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = graph.build(component)
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    copy = graph.write(built, tmp_path / "read instead")  # nothing copied at all: pieces are read
    assert copy[1].stat().st_size
    given = iter([16])
    monkeypatch.setattr(os, "copy_file_range", lambda *_: next(given, 0))
    with pytest.raises(CheckpointError, match="changed meanwhile"):
        graph.write(built, tmp_path / "cut")
