"""`exporter.targets.coreml.load(path).predict(inputs)`, used by itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from exporter.targets.coreml import load
from exporter.targets.coreml.interpreter import Peaks
from tests.targets.coreml.conftest import Exported

ALONE = """
import sys
import numpy as np
from exporter.targets import coreml

model = coreml.load(sys.argv[1])
(feature,) = model.inputs
latents = np.random.default_rng(0).standard_normal(feature.shape).astype(feature.dtype)
image = model.predict({"z": latents})["image"]
assert image.shape == model.outputs[0].shape and image.dtype == np.float32 and np.isfinite(image).all()
loaded = {"diffusers", "exporter.parity", "exporter.checkpoints"} & set(sys.modules)
sys.exit(f"loaded {loaded}" if loaded else 0)
"""


def test_it_needs_nothing_but_the_package(half: Exported, tmp_path: Path) -> None:
    """In a process of its own, from another folder: no checkpoint, no artifact, no verifier."""
    package = half.package("vae_decoder").resolve()
    subprocess.run([sys.executable, "-c", ALONE, str(package)], check=True, cwd=tmp_path)


def test_what_predict_takes_and_gives(half: Exported) -> None:
    path = half.package("vae_decoder")
    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8))
    model = load(str(path))
    assert [(f.name, f.dtype, f.shape) for f in model.inputs] == [("z", "float16", (1, 4, 8, 8))]
    given = {"z": latents.astype(np.float16)}
    first, second = model.predict(given), model.predict(given)
    assert list(first) == ["image"] and first["image"].tobytes() == second["image"].tobytes()
    assert given["z"].tobytes() == latents.astype(np.float16).tobytes(), "inputs are left as they are"
    kept = next(name for step in model.program.steps if step.kind == "conv" for name, _, _ in step.outputs)
    peaks = Peaks()
    more = model.predict(given, keep=[kept], peaks=peaks)
    assert more[kept].dtype == np.float32 and np.array_equal(more["image"], first["image"])
    found = peaks.values[kept]
    assert found.operation == "conv" and found.dtype == "float16"
    assert np.abs(more[kept]).max() == pytest.approx(found.peak, rel=1e-3) and peaks.overflowing() == []


def test_modes(half: Exported) -> None:
    """Rounding is all that tells them apart, and `unrounded` takes what it does not round."""
    path = half.package("vae_decoder")
    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    halves = {"z": latents.astype(np.float16)}
    images = {
        mode: load(path, mode=mode).predict(halves)["image"] for mode in ("exact", "emulate", "unrounded")
    }  # type: ignore[arg-type]
    scale = np.abs(images["unrounded"]).max()
    for mode in ("exact", "emulate"):
        assert 1e-6 < np.abs(images[mode] - images["unrounded"]).max() / scale < 2e-2
    wide = load(path, mode="unrounded").predict({"z": latents})["image"]
    assert 0 < np.abs(wide - images["unrounded"]).max() / scale < 1e-2
    with pytest.raises(ValueError, match="declared float16, got float32"):
        load(path, mode="emulate").predict({"z": latents})
