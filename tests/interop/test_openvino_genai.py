"""OpenVINO GenAI, the client without Python inside, opens artifacts from disk and paints.

It runs in a process of its own: it brings a second copy of the tokenizer operators.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino_genai")

from tests.interop.openvino_artifacts import make, make_once
from tests.judge import judge

pytestmark = pytest.mark.interop
PROMPTS = [
    "a large red star at the left on a blue background",
    "a small yellow circle at the top on a black background",
]

PAINT = """
import sys, numpy, openvino_genai
folder, out, mode, size, steps, *prompts = sys.argv[1:]
size, steps = int(size), int(steps)
if mode == "static":
    pipeline = openvino_genai.Text2ImagePipeline(folder)
    pipeline.reshape(1, size, size, 7.5)
    pipeline.compile("CPU")
else:
    pipeline = openvino_genai.Text2ImagePipeline(folder, "CPU")
pictures = [
    numpy.array(
        pipeline.generate(p, width=size, height=size, num_inference_steps=steps, rng_seed=3).data, copy=True
    )[0]
    for p in prompts
]
numpy.save(out, numpy.stack(pictures))
"""
REPAINT = """
import sys, numpy, openvino, openvino_genai
folder, out = sys.argv[1:]
pipeline = openvino_genai.Image2ImagePipeline(folder, "CPU")
start = openvino.Tensor(numpy.full((1, 64, 64, 3), 100, numpy.uint8))
picture = pipeline.generate("a star", start, strength=0.7, num_inference_steps=3)
numpy.save(out, numpy.array(picture.data, copy=True))
"""


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def paint(folder: Path, out: Path, mode: str, size: int, steps: int, *prompts: str) -> np.ndarray:
    done = run(PAINT, folder, out, mode, size, steps, *prompts)
    assert done.returncode == 0, done.stderr[-2000:]
    return np.load(out)


@pytest.fixture(scope="module")
def tiny_artifact(tiny: Path) -> Path:
    return make_once(str(tiny), tiny.parent / "openvino-clients")


@pytest.fixture(scope="module")
def shapes_artifact(tiny: Path) -> Path:
    return make_once("builtin:shapes", tiny.parent / "openvino-shapes")


def test_paints_dynamic_and_static(tiny_artifact: Path, tmp_path: Path) -> None:
    long = "a red star " * 60  # more tokens than the text encoder has places
    dynamic = paint(tiny_artifact, tmp_path / "d.npy", "dynamic", 64, 3, "a star", long, "a star")
    assert dynamic.shape == (3, 64, 64, 3)
    assert np.array_equal(dynamic[0], dynamic[2])
    assert not np.array_equal(dynamic[0], dynamic[1])
    assert paint(tiny_artifact, tmp_path / "s.npy", "static", 64, 2, "a star").shape == (1, 64, 64, 3)


def test_repaints_a_picture(tiny_artifact: Path, tmp_path: Path) -> None:
    done = run(REPAINT, tiny_artifact, tmp_path / "r.npy")
    assert done.returncode == 0, done.stderr[-2000:]
    assert np.load(tmp_path / "r.npy").shape == (1, 64, 64, 3)


def test_refuses_a_float32_timestep(tiny: Path, tiny_artifact: Path, tmp_path: Path) -> None:
    """Why int64 is the default; the day this fails, float32 can be."""
    unet = make(tiny, tmp_path / "unet", ["unet"], timestep="float32") / "unet"
    artifact = tmp_path / "artifact"
    shutil.copytree(tiny_artifact, artifact)
    shutil.copytree(unet, artifact / "unet", dirs_exist_ok=True)
    done = run(PAINT, artifact, tmp_path / "x.npy", "dynamic", 64, 2, "a star")
    assert done.returncode != 0
    assert "precision: i64" in done.stderr


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_embedded_checkpoint_paints_what_is_asked(shapes_artifact: Path, tmp_path: Path, dtype: str) -> None:
    artifact = shapes_artifact
    if dtype == "float16":
        artifact = make("builtin:shapes", tmp_path / "shapes", dtype=dtype)
    pictures = paint(artifact, tmp_path / "p.npy", "dynamic", 128, 25, *PROMPTS)
    for prompt, picture in zip(PROMPTS, pictures, strict=True):
        judgement = judge(picture, prompt)
        assert judgement.ok, judgement
