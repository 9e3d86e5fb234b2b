"""The safety checker up to its scores, and what is made of them, against the library's own class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exporter.architectures import components_of
from exporter.architectures.safety_checker import COUNTS, found, shown
from exporter.checkpoints import resolve
from exporter.pipeline import load
from exporter.safety_checker import ExportedSafetyChecker
from tests.checkers import NEVER, PIXELS, checker, give
from tests.test_pipeline import TorchRunner

NEAR = st.floats(-0.0125, 0.0025) | st.sampled_from(
    [v + ulps * 6e-11 for v in (0.0005, -0.0095, 0.0, -0.01) for ulps in (-2, -1, 0, 1, 2)]
)
"""Scores about which rounding, and the stricter look after a special concept, decide."""


class Fixed(torch.nn.Module):
    """In the place of the checker's eyes: the cosines are what the test says."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, _: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, self.values


def library(made: Any, pixels: torch.Tensor) -> list[bool]:
    _, flags = made(pixels, np.ones((len(pixels), 2, 2, 3), np.float32))
    return flags


def pixels(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return give(tiny, tmp_path_factory.mktemp("checked") / "sd", checker(0.25, 0.2))


@given(special=st.lists(NEAR, min_size=3, max_size=3), concepts=st.lists(NEAR, min_size=17, max_size=17))
def test_it_decides_as_the_library_does(special: list[float], concepts: list[float]) -> None:
    """With a picture that is orthogonal to every concept, the cosine is 0 and the score −threshold."""
    made = checker()
    seen = torch.zeros(1, made.visual_projection.in_features)
    made.vision_model = Fixed(seen)
    made.special_care_embeds_weights.data = -torch.tensor(special, dtype=torch.float32)
    made.concept_embeds_weights.data = -torch.tensor(concepts, dtype=torch.float32)
    (expected,) = library(made, pixels(1))
    scores = [(-w.data).tolist() for w in (made.special_care_embeds_weights, made.concept_embeds_weights)]
    assert found(*scores) is expected


def test_both_decisions_and_the_stricter_one_are_reached() -> None:
    low = [-1.0] * 16
    assert found([-1.0] * 3, [*low, 0.001]) and not found([-1.0] * 3, [*low, 0.0])
    assert found([0.001, -1, -1], [*low, -0.009]) and not found([0.0, -1, -1], [*low, -0.009])
    assert not found([0.001, -1, -1], [*low, -0.011])


@pytest.mark.parametrize("seed", range(12))
def test_scores_and_flags_of_the_component(folder: Path, seed: int) -> None:
    """The module that is exported, over thresholds that lie on a picture's own scores."""
    (component,) = [c for c in components_of(resolve(folder)) if c.name == "safety_checker"]
    module, looks = component.reference_module(), pixels(4, seed)
    made = checker(0.25, 0.2)
    with torch.no_grad():
        special, concepts = module(clip_input=looks)
        assert {n: v.shape[1] for n, v in zip(COUNTS, (special, concepts), strict=True)} == COUNTS
        for each in (module.inner, made):  # one of picture 0's scores becomes about 0
            each.concept_embeds_weights.data = made.concept_embeds_weights.data.clone()
        shift = concepts.max(dim=1).values[0] + torch.tensor((seed - 6) * 2e-4)
        for each in (module.inner, made):
            each.concept_embeds_weights.data = each.concept_embeds_weights.data + shift
            each.special_care_embeds_weights.data = (
                each.special_care_embeds_weights.data + special.max(dim=1).values[1]
            )
        special, concepts = module(clip_input=looks)
        expected = library(made, looks)
    assert [found(*s) for s in zip(special.tolist(), concepts.tolist(), strict=True)] == expected


def test_it_is_shown_what_the_pipeline_shows(folder: Path) -> None:
    pipeline = load(folder)
    asked: list[torch.Tensor] = []

    def look(clip_input: torch.Tensor, images: Any) -> tuple[Any, list[bool]]:
        asked.append(clip_input)
        return images, [False] * len(images)

    pipeline.safety_checker.forward = look
    pictures = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(3)) * 2.4 - 1.2
    pipeline.run_safety_checker(pictures, "cpu", torch.float32)
    assert torch.equal(shown(resolve(folder), pictures), asked[0])
    assert asked[0].shape == (2, 3, PIXELS, PIXELS)


@pytest.mark.parametrize("kind", ["array", "tensor", "list"])
def test_the_stand_in_blackens_what_the_library_blackens(tiny: Path, tmp_path: Path, kind: str) -> None:
    looks = pixels(6)
    made = checker(0.0, NEVER)
    path = give(tiny, tmp_path / "sd", made)
    (component,) = [c for c in components_of(resolve(path)) if c.name == "safety_checker"]
    with torch.no_grad():
        _, concepts = component.reference_module()(clip_input=looks)
    made.concept_embeds_weights.data += concepts.max(dim=1).values.median() + 1e-3
    made.save_pretrained(path / "safety_checker")
    (component,) = [c for c in components_of(resolve(path)) if c.name == "safety_checker"]
    given_ = torch.rand(6, 3, 8, 8) + 0.1

    def images() -> Any:
        return {"array": given_.numpy().copy(), "tensor": given_.clone(), "list": list(given_.clone())}[kind]

    ours, flags = ExportedSafetyChecker(TorchRunner(component), component.config)(looks, images())
    theirs, expected = made(looks, images())
    assert flags == expected and set(flags) == {True, False}
    for one, other in zip(ours, theirs, strict=True):
        assert type(one) is type(other) and np.array_equal(one, other)
