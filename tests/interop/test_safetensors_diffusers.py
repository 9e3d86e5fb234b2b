"""Safetensors artifacts in diffusers, loaded in the ways people load large models, in another process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.conversion import convert, make_plan
from exporter.devices import parse_budgets, plan_devices

pytestmark = pytest.mark.interop

CLIENT = Path(__file__).with_name("load_in_diffusers.py")
CPU_WAYS = {
    "plain": "float32",
    "low_cpu_mem_usage": "float32",
    "not low_cpu_mem_usage": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "a dtype for each": "float16",
    "balanced, main memory only": "float32",
    "device_map cpu": "float32",
}
GPU_WAYS = (
    "device_map cuda",
    "balanced, one GPU",
    "balanced, one GPU too small for the largest",
    "balanced, two GPUs",
)
LIMITS = {"float32": 1e-5, "float16": 2e-2, "bfloat16": 1e-1}
"""Relative L2 of the latents after two steps, from those of the plain load."""


@pytest.fixture(scope="module")
def artifact(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("loading") / "sharded"
    convert(make_plan(str(tiny), "safetensors", out, {"max_shard_size": "300KB"}, verify=False))
    return out


@pytest.fixture(scope="module")
def loaded(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    output = tmp_path_factory.mktemp("latents")
    ran = subprocess.run(
        [sys.executable, str(CLIENT), str(artifact), str(output)], capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1]), output


def far(loaded: tuple[dict[str, Any], Path], way: str) -> float:
    found, output = loaded
    plain = np.load(output / found["plain"]["latents"]).astype(np.float64)
    value = np.load(output / found[way]["latents"]).astype(np.float64)
    return float(np.linalg.norm(value - plain) / np.linalg.norm(plain))


@pytest.mark.parametrize("way", CPU_WAYS)
def test_it_loads_and_paints_the_same(loaded: tuple[dict[str, Any], Path], way: str) -> None:
    found = loaded[0][way]
    assert "error" not in found, found["error"]
    dtype = CPU_WAYS[way]
    assert found["dtypes"]["unet"] == dtype
    if way == "a dtype for each":
        assert found["dtypes"]["vae"] == "float32"
    assert set(found["devices"].values()) == {"cpu"}
    assert abs(found["conv_in"] - loaded[0]["plain"]["conv_in"]) <= (0 if dtype == "float32" else 1.0)
    assert far(loaded, way) <= LIMITS[dtype]


@pytest.mark.parametrize("way", GPU_WAYS)
def test_on_gpus(loaded: tuple[dict[str, Any], Path], artifact: Path, way: str) -> None:
    found = loaded[0][way]
    if "skipped" in found:
        pytest.skip(found["skipped"])
    assert "error" not in found, found["error"]
    assert far(loaded, way) <= 1e-2
    if "max_memory" in found:
        text = ",".join(f"{device}={size}" for device, size in found["max_memory"].items())
        plan = plan_devices(str(artifact), parse_budgets(text))
        assert {p.name: p.device for p in plan.components if p.device} == found["map"]


def test_one_part_on_two_gpus(loaded: tuple[dict[str, Any], Path], artifact: Path) -> None:
    found = loaded[0]["unet split over two GPUs"]
    if "skipped" in found:
        pytest.skip(found["skipped"])
    text = ",".join(f"{device}={size}" for device, size in found["max_memory"].items())
    plan = plan_devices(str(artifact), parse_budgets(text), split=["unet"])
    unet = next(part for part in plan.components if part.name == "unet")
    assert unet.blocks == found["map"]
