"""Plain PyTorch opens `.pt2` files in a process without exporter, and computes the right thing."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter.architectures import components_of
from exporter.checkpoints import resolve
from tests.targets.pt2.archives import needs_compiler

CLIENT = """
import sys
import numpy as np
import torch

path, given, wanted = sys.argv[1:]
{load}
with np.load(given) as file, torch.no_grad():
    outputs = program(*(torch.from_numpy(file[name]) for name in sorted(file.files)))
np.savez(wanted, *(value.numpy() for value in outputs))
ours = [name for name in sys.modules if name.split(".")[0] in ("exporter", "diffusers", "transformers")]
assert not ours, ours
"""


def ask_plain_pytorch(path: Path, load: str, inputs: dict[str, torch.Tensor], folder: Path) -> list[Any]:
    given, wanted = folder / "given.npz", folder / "wanted.npz"
    np.savez(given, **{f"{i:02}": tensor.numpy() for i, tensor in enumerate(inputs.values())})
    done = subprocess.run(
        [sys.executable, "-c", CLIENT.format(load=load), str(path), str(given), str(wanted)],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(wanted) as file:
        return [file[name] for name in file.files]


def check(root: Path, name: str, load: str, tiny: Path, folder: Path) -> None:
    """At a batch, a height and a sequence that the export did not see."""
    part = next(c for c in components_of(resolve(str(tiny))) if c.name == name)
    size = replace(part.native, batch=1, height=part.native.height * 2, sequence=20)
    inputs = part.example_inputs(size, seed=3)
    with torch.no_grad():
        expected = part.reference_module()(**inputs)
    found = ask_plain_pytorch(root / name / "model.pt2", load, inputs, folder)
    assert len(found) == len(expected)
    for value, wanted in zip(found, expected, strict=True):
        assert value.shape == tuple(wanted.shape)
        assert float(wanted.std()) > 1e-3
        assert np.abs(value - wanted.numpy()).max() <= 1e-4


def test_an_exported_program(program: Path, tiny: Path, tmp_path: Path) -> None:
    check(program, "unet", "program = torch.export.load(path).module()", tiny, tmp_path)


@pytest.mark.full
@needs_compiler
def test_a_compiled_package(compiled: Path, tiny: Path, tmp_path: Path) -> None:
    load = "import torch._inductor; program = torch._inductor.aoti_load_package(path)"
    check(compiled, "text_encoder", load, tiny, tmp_path)
