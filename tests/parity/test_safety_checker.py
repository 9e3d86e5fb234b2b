"""The safety checker of an artifact is judged; a fault in it is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from exporter.checkpoints import resolve
from exporter.parity import Report, verify
from tests.checkers import ALWAYS, checker, give
from tests.parity.torch_target import Fault, TorchTarget, make_artifact

SETTINGS = {"steps": 2, "samples": 1, "prompts": ["a red star"], "bisect": False}


@pytest.fixture(scope="module")
def checked(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return give(tiny, tmp_path_factory.mktemp("checked") / "always", checker(ALWAYS))


def shifted(module: nn.Module) -> None:
    module.get_parameter("inner.concept_embeds_weights").data[3] += 1e-3


def exchanged(module: nn.Module) -> None:
    concepts = module.get_parameter("inner.concept_embeds").data
    concepts[[0, 1]] = concepts[[1, 0]]


def blind(module: nn.Module) -> None:
    module.get_parameter("inner.visual_projection.weight").data[0] *= 1.001


@pytest.mark.parametrize("fault", [None, shifted, exchanged, blind])
def test_a_fault_is_found(
    fault: Callable[[nn.Module], None] | None, checked: Path, truths: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    checkpoint = resolve(checked)
    faults: dict[str, Fault] = {} if fault is None else {"safety_checker": fault}
    target = TorchTarget(checkpoint, faults)
    monkeypatch.setattr("exporter.targets.get_target", lambda name: target)
    report: Report = verify(make_artifact(checkpoint, tmp_path / "a"), cache=truths, **SETTINGS)
    assert report.verdict == ("PASS" if fault is None else "FAIL"), report.summary
    (part,) = [part for part in report.components if part.name == "safety_checker"]
    assert part.verdict == report.verdict
    assert {case.kind for case in part.runs[0].cases} == {"captured", "batch"}
