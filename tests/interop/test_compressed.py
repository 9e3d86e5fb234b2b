"""Quantised artifacts of the embedded checkpoint in the clients people use: each paints what is asked.

Every client runs in a process of its own and is asked for no precision: whatever it makes of quantised
weights by default is in the picture.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from exporter.conversion import convert, make_plan
from tests.judge import judge

pytestmark = pytest.mark.interop
PROMPT = "a large red star at the left on a blue background"
OPTIMUM = """
import sys, numpy, torch
from {package} import {prefix}StableDiffusionPipeline
folder, out, prompt, shapes = sys.argv[1:]
pipeline = {prefix}StableDiffusionPipeline.from_pretrained(folder)
if shapes == "static":
    pipeline.reshape(batch_size=1, height=128, width=128, num_images_per_prompt=1)
    pipeline.compile()
pipeline.set_progress_bar_config(disable=True)
generator = torch.Generator().manual_seed(5)
picture = pipeline(prompt, num_inference_steps=15, generator=generator, output_type="np").images[0]
numpy.save(out, picture)
"""
GENAI = """
import sys, numpy, openvino_genai
folder, out, prompt, shapes = sys.argv[1:]
pipeline = openvino_genai.Text2ImagePipeline(folder)
if shapes == "static":
    pipeline.reshape(1, 128, 128, 7.5)
pipeline.compile("CPU")
picture = pipeline.generate(prompt, width=128, height=128, num_inference_steps=15, rng_seed=3)
numpy.save(out, numpy.array(picture.data, copy=True)[0])
"""
CLIENTS = {
    "optimum": ("onnx", "optimum.onnxruntime", OPTIMUM.format(package="optimum.onnxruntime", prefix="ORT")),
    "optimum-intel": ("openvino", "optimum.intel", OPTIMUM.format(package="optimum.intel", prefix="OV")),
    "genai": ("openvino", "openvino_genai", GENAI),
}


@cache
def artifact(target: str, weights: str, folder: Path) -> Path:
    plan = make_plan("builtin:shapes", target, folder, {"weights": weights}, verify=False)
    return convert(plan).artifact.root


@pytest.mark.parametrize(
    ("client", "weights", "shapes"),
    [
        ("optimum", "int8", "dynamic"),
        ("optimum", "int4", "dynamic"),
        ("optimum-intel", "int8", "dynamic"),
        ("optimum-intel", "int4", "static"),
        ("genai", "int8", "static"),
        ("genai", "int4", "dynamic"),
    ],
)
def test_paints_what_is_asked(tiny: Path, tmp_path: Path, client: str, weights: str, shapes: str) -> None:
    target, package, script = CLIENTS[client]
    pytest.importorskip(package)
    root = artifact(target, weights, tiny.parent / f"shapes-{target}-{weights}")
    out = tmp_path / "picture.npy"
    command = [sys.executable, "-c", script, str(root), str(out), PROMPT, shapes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    judgement = judge(np.load(out), PROMPT)
    assert judgement.ok, judgement
