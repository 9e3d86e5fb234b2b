"""Artifacts that merge tokens: the honest ones pass, though they decide otherwise; every fault is found."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from exporter.architectures import Size, components_of
from exporter.architectures.baked import merging as rules
from exporter.artifact import Artifact
from exporter.checkpoints import open_source
from exporter.conversion import convert, make_plan
from exporter.parity import Report, verify
from exporter.parity.cases import Inputs, convert_inputs
from exporter.targets import RunOptions, get_target
from tests.mutation import merging

pytest.importorskip("tomesd")

SETTINGS: dict[str, Any] = {"steps": 2, "samples": 2, "prompts": ["a red star"]}
ALONE: dict[str, Any] = SETTINGS | {"pipeline": False, "components": ["unet"]}

FAULTY = ("conv_in.weight", "up_blocks.1.resnets.1.conv1.weight")


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return merging.make_alike(tmp_path_factory.mktemp("alike") / "model")


@pytest.fixture(scope="module")
def honest(alike: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """An ONNX artifact of it, and what the verifier says, pictures included."""
    pytest.importorskip("onnxruntime")
    root = convert_to("onnx", alike, tmp_path_factory.mktemp("honest") / "artifact")
    return root, verify(root, **SETTINGS)


def convert_to(target: str, source: Path, root: Path, **options: Any) -> Path:
    plan = make_plan(
        str(source), target, root, options, verify=False, techniques=[{"token-merging": {"ratio": 0.5}}]
    )
    convert(plan)
    return root


def decided_otherwise(report: Report) -> int:
    (unet,) = [part for part in report.components if part.name == "unet"]
    return sum(d.otherwise for run in unet.runs for case in run.cases for d in case.decisions)


def test_an_honest_artifact_passes_that_decides_otherwise(honest: tuple[Path, Report]) -> None:
    _, report = honest
    assert report.verdict == "PASS", report.summary
    assert decided_otherwise(report) > 0, "nothing was tried"
    (unet,) = [part for part in report.components if part.name == "unet"]
    assert "are merged otherwise than in float64" in unet.summary


def test_showing_the_decisions_changes_nothing(honest: tuple[Path, Report], alike: Path) -> None:
    """What is judged is the file with further outputs: its bits are those of the file as clients open it."""
    root, report = honest
    record = Artifact.open(root).manifest.component("unet")
    places = {
        d.place for part in report.components for run in part.runs for c in run.cases for d in c.decisions
    }
    (unet,) = [c for c in components_of(open_source(str(alike))) if c.name == "unet"]
    case = Inputs("", "random", "", unet.example_inputs(Size(2, 64, 64, 77, 8)))
    arrays, _ = convert_inputs(case, record.inputs)
    with get_target("onnx").open(root, record, RunOptions()) as runner:
        shipped = runner.run(arrays)
    with get_target("onnx").open(root, record, RunOptions(watch=tuple(places))) as runner:
        watched = runner.run(arrays)
    assert set(watched) == {"out_sample"} | places and len(places) == 3
    assert np.array_equal(watched["out_sample"], shipped["out_sample"])


def noise(report: Report) -> float:
    """The median floor of the UNet's output."""
    (unet,) = [part for part in report.components if part.name == "unet"]
    return median(output.noise("relative_l2") for case in unet.runs[0].cases for output in case.outputs)


def test_without_its_decisions_a_fault_would_pass(
    honest: tuple[Path, Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch decides otherwise too, and the floor that comes of it is no measure of rounding."""
    monkeypatch.setattr("exporter.architectures.baked.token_merging.Decisions", lambda *args: None)
    root = tmp_path / "faulty"
    shutil.copytree(honest[0], root)
    merging.scale_weight(root, FAULTY[0], 1.001)
    report = verify(root, **ALONE, bisect=False)
    print(noise(report), noise(honest[1]))
    assert report.verdict == "PASS" and noise(report) > 4 * noise(honest[1])


@pytest.mark.parametrize("ending", FAULTY)
def test_a_weight_is_found_in_spite_of_other_decisions(
    ending: str, honest: tuple[Path, Report], tmp_path: Path
) -> None:
    root = tmp_path / "faulty"
    shutil.copytree(honest[0], root)
    merging.scale_weight(root, ending, 1.001)
    report = verify(root, **ALONE)
    assert report.verdict == "FAIL", report.summary


def test_a_file_that_does_not_show_its_decisions_is_not_judged(
    honest: tuple[Path, Report], tmp_path: Path
) -> None:
    root = tmp_path / "nameless"
    shutil.copytree(honest[0], root)
    merging.forget_modules(root)
    report = verify(root, **ALONE)
    assert report.verdict == "INCONCLUSIVE"
    assert "does not show which tokens it merges" in report.summary


def planted(
    kind: type[rules.Matching], target: str, source: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    with monkeypatch.context() as patch:
        patch.setattr(rules, "Matching", kind)
        patch.setenv("EXPORTER_CACHE", str(root.parent / "cache"))  # graphs are kept by their sources
        return convert_to(target, source, root)


def test_merging_others_is_found(alike: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    root = planted(merging.NextBest, "onnx", alike, tmp_path / "faulty", monkeypatch)
    report = verify(root, **ALONE, bisect=False)
    assert report.verdict == "FAIL" and "merges other tokens than it should" in report.summary


FAULTS: dict[str, Callable[..., Any]] = merging.IN_THE_DECISION | merging.IN_WHAT_FOLLOWS


@pytest.mark.full
@pytest.mark.parametrize("target", ["onnx", "openvino"])
@pytest.mark.parametrize("name", [*FAULTS, "of-other-tokens"])
def test_every_fault_is_found(
    name: str, target: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime" if target == "onnx" else "openvino")
    kind: Any = {**FAULTS, "of-other-tokens": merging.OfOtherTokens}[name]
    report = verify(planted(kind, target, tiny, tmp_path / "faulty", monkeypatch), **ALONE, bisect=False)
    assert report.verdict == "FAIL", report.summary
    if name not in merging.IN_WHAT_FOLLOWS:  # what follows wrongly also changes what later blocks decide
        assert "merges other tokens" in report.summary, report.summary


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_honest_artifacts_pass_in_every_dtype(target: str, dtype: str, alike: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime" if target == "onnx" else "openvino")
    if target == "onnx" and dtype == "bfloat16":
        pytest.skip("ONNX Runtime has no bfloat16 on a CPU")
    report = verify(convert_to(target, alike, tmp_path / "artifact", dtype=dtype), **SETTINGS)
    assert report.verdict == "PASS", report.summary
    assert decided_otherwise(report) > 0
