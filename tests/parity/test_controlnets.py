"""ControlNets are judged: alone, as what the UNet is given, and in the whole picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.checkpoints import resolve
from exporter.parity import Report, verify
from tests.families import make
from tests.parity.torch_target import OutputFault, TorchTarget, make_artifact


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("two_controlnets", tmp_path_factory.mktemp("parity") / "pair")


def judged(
    pair: Path, root: Path, truths: Path, monkeypatch: pytest.MonkeyPatch, swap: bool = False,
    after: Mapping[str, OutputFault] | None = None, **settings: Any,
) -> Report:  # fmt: skip
    checkpoint = resolve(pair)
    target = TorchTarget(checkpoint, after=after)
    if swap:
        parts = target.components
        parts["controlnet"], parts["controlnet_1"] = parts["controlnet_1"], parts["controlnet"]
    monkeypatch.setattr("exporter.targets.get_target", lambda name: target)
    given = {"steps": 2, "samples": 1, "prompts": ["a red star"], "cache": truths, "bisect": False}
    return verify(make_artifact(checkpoint, root / "artifact"), **(given | settings))


def test_an_honest_one_passes(
    pair: Path, truths: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = judged(pair, tmp_path, truths, monkeypatch)
    assert report.verdict == "PASS", report.summary
    assert report.pipeline is not None and "follows a drawing of its own" in str(report.pipeline.given)
    assert report.pipeline.exported == ["text_encoder", "controlnet", "controlnet_1", "unet", "vae_decoder"]
    parts = {part.name: part for part in report.components}
    for name in ("controlnet", "controlnet_1", "unet"):
        kinds = {case.kind for case in parts[name].runs[0].cases}
        assert {"captured", "batch", "aspect", "sequence", "timestep"} <= kinds, (name, kinds)
    captured = next(c for c in parts["controlnet"].runs[0].cases if c.kind == "captured")
    assert captured.inputs["conditioning_scale"] == "float32[]" and "(t=" in captured.label


def test_an_adapter_is_judged_with_the_unet(
    truths: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = make("t2i_adapter", tmp_path / "adapted")
    report = judged(adapted, tmp_path, truths, monkeypatch)
    assert report.verdict == "PASS", report.summary
    kinds = {part.name: {case.kind for case in part.runs[0].cases} for part in report.components}
    assert "captured" in kinds["adapter"] and "captured" in kinds["unet"], kinds

    def shrunk(outputs: dict[str, np.ndarray], _: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: value * 0.999 for name, value in outputs.items()}

    found = judged(
        adapted, tmp_path / "faulty", truths, monkeypatch, after={"adapter": shrunk}, components=["adapter"]
    )
    assert found.verdict == "FAIL"


def test_two_that_are_exchanged_are_found(
    pair: Path, truths: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = judged(pair, tmp_path, truths, monkeypatch, swap=True, components=["controlnet", "controlnet_1"])
    assert [part.verdict for part in found.components] == ["FAIL", "FAIL"]


def test_a_scale_that_is_left_out_is_found(
    pair: Path, truths: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unscaled(outputs: dict[str, np.ndarray], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: value / inputs["conditioning_scale"] for name, value in outputs.items()}

    after = {"controlnet": unscaled}
    found = judged(pair, tmp_path, truths, monkeypatch, after=after, components=["controlnet"])
    assert found.verdict == "FAIL"
