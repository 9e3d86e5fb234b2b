"""The safety checker is judged: a fault that changes what it finds is found; an honest one passes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from exporter.checkpoints import Checkpoint, resolve
from exporter.parity import Report, verify
from tests.checkers import checker, give
from tests.parity.torch_target import Fault, TorchTarget, make_artifact

NAME = "safety_checker"


@pytest.fixture(scope="module")
def checked(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return resolve(give(tiny, tmp_path_factory.mktemp("judged") / "sd", checker(0.25, 0.2)))


def judged(
    checkpoint: Checkpoint, root: Path, truths: Path, monkeypatch: pytest.MonkeyPatch,
    fault: Fault | None = None, components: list[str] | None = None,
) -> Report:  # fmt: skip
    target = TorchTarget(checkpoint, {NAME: fault} if fault else None)
    monkeypatch.setattr("exporter.targets.get_target", lambda name: target)
    return verify(
        make_artifact(checkpoint, root / "artifact"), steps=2, samples=1, prompts=["a red star"],
        cache=truths, bisect=False, components=components,
    )  # fmt: skip


def test_an_honest_one_passes(
    checked: Checkpoint, truths: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = judged(checked, tmp_path, truths, monkeypatch)
    assert report.verdict == "PASS", report.summary
    assert (
        report.pipeline is not None and NAME not in report.pipeline.exported
    )  # it would hide what is judged
    (part,) = [part for part in report.components if part.name == NAME]
    assert {"captured", "batch"} <= {case.kind for case in part.runs[0].cases}
    captured = next(case for case in part.runs[0].cases if case.kind == "captured")
    assert captured.inputs == {"clip_input": "float32[1, 3, 32, 32]"}


def shifted(module: nn.Module) -> None:
    """One threshold of seventeen."""
    module.get_parameter("inner.concept_embeds_weights").data[5] += 0.01


def lenient(module: nn.Module) -> None:
    module.get_parameter("inner.special_care_embeds_weights").data[1] += 0.01


def reordered(module: nn.Module) -> None:
    """Each concept is compared with its neighbour's threshold."""
    weight = module.get_parameter("inner.concept_embeds")
    weight.data = weight.data.roll(1, 0)


def blind(module: nn.Module) -> None:
    weight = module.get_parameter("inner.vision_model.embeddings.patch_embedding.weight")
    weight.data = torch.flip(weight.data, [1])


class Longer(nn.Module):
    """Dot products in the place of cosines."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, clip_input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = self.inner.visual_projection(self.inner.vision_model(clip_input)[1])
        special, concepts = (
            seen @ nn.functional.normalize(embeds).t()
            for embeds in (self.inner.special_care_embeds, self.inner.concept_embeds)
        )
        return special - self.inner.special_care_embeds_weights, concepts - self.inner.concept_embeds_weights


def unnormalised(module: nn.Module) -> None:
    module.forward = Longer(module.inner).forward  # type: ignore[method-assign]


@pytest.mark.parametrize("fault", [shifted, lenient, reordered, blind, unnormalised])
def test_a_planted_fault_is_found(
    checked: Checkpoint, truths: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    report = judged(checked, tmp_path, truths, monkeypatch, fault, [NAME])
    assert report.verdict == "FAIL", report.summary
