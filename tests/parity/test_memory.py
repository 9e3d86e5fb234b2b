"""The pages of a large reference's weights are handed back while it runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from exporter.architectures import components_of
from exporter.checkpoints import resolve
from exporter.parity import arithmetic
from exporter.parity.arithmetic import Reference


@pytest.fixture
def own(tiny: Path, tmp_path: Path) -> Path:
    """A checkpoint that no other test of this process has mapped."""
    return Path(shutil.copytree(tiny, tmp_path / "own"))


def mapped_bytes(path: Path) -> int:
    """Resident bytes of a file's mappings in this process."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0] and ":" not in line.split(" ")[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("mode", ["float32", "float64"])
def test_a_pass_leaves_little_resident_and_computes_the_same(
    own: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    def run() -> tuple[torch.Tensor, int]:
        component = next(c for c in components_of(resolve(str(own))) if c.name == "unet")
        inputs = component.example_inputs(component.native)
        with Reference(component, arithmetic=mode) as reference:
            outputs = [reference(inputs)["out_sample"] for _ in range(2)]
            assert torch.equal(*outputs), "what was handed back is read again"
            return outputs[0], mapped_bytes(file)

    file = (own / "unet" / "diffusion_pytorch_model.safetensors").resolve()
    kept, whole = run()
    monkeypatch.setattr(arithmetic, "BIG", 0)
    monkeypatch.setattr(arithmetic, "RELEASED_FROM", 4096)
    released, little = run()
    assert torch.equal(kept, released)
    assert whole > 0.7 * file.stat().st_size, "without it the file is resident after a pass"
    assert little < 0.4 * whole


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads Linux's /proc")
def test_hashing_the_weights_leaves_little_resident(own: Path) -> None:
    component = next(c for c in components_of(resolve(str(own))) if c.name == "unet")
    file = (own / "unet" / "diffusion_pytorch_model.safetensors").resolve()
    assert component.weights_digest
    assert mapped_bytes(file) < 0.5 * file.stat().st_size
