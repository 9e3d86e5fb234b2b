"""Two graphs of a denoiser, as pipelines are used: from a picture, several at once, without guidance.

The graphs compute in PyTorch here: what is tried is what calls them, against the techniques of PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from exporter import pipeline, techniques
from exporter.architectures import Component, components_of
from exporter.architectures.baked.driving import driver_of
from exporter.artifact import TensorRecord
from exporter.checkpoints import open_source
from exporter.errors import UsageError
from exporter.stand_ins import ExportedUNet
from exporter.targets import Runner
from tests.tiny_sdxl import make_tiny_sdxl

PROMPTS = ["a large red star", "a small green circle"]


class InPyTorch(Runner):
    """A component's own module as the runtime of its graph."""

    def __init__(self, component: Component) -> None:
        self.module = component.reference_module()
        self.inputs, self.outputs = (
            tuple(TensorRecord(name=s.name, dtype=s.dtype, dims=list(s.dims)) for s in specs)
            for specs in (component.inputs, component.outputs)
        )

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            outputs = self.module(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        return {s.name: value.numpy() for s, value in zip(self.outputs, outputs, strict=True)}


def driven(source: Path, name: str, **options: Any) -> Any:
    """The pipeline of an artifact that carries the technique."""
    checkpoint = techniques.bake([{name: options}], "onnx", open_source(str(source)))
    runners = {c.name: InPyTorch(c) for c in components_of(checkpoint) if c.folder == "unet"}
    painter = pipeline.from_checkpoint(str(source))
    driver = driver_of(checkpoint.techniques)
    assert driver is not None
    driver.begins_with(painter.scheduler)
    first = runners.pop("unet")
    painter.unet = ExportedUNet(first, painter.unet.config, driver, runners)
    return painter


def by_technique(source: Path, name: str, **options: Any) -> Any:
    painter = pipeline.from_checkpoint(str(source))
    techniques.apply(painter, [{name: options}])
    return painter


def painted(painter: Any, prompts: list[str], **settings: Any) -> np.ndarray:
    pictures = pipeline.paint(painter, prompts, **{"seed": [1, 2][: len(prompts)], "steps": 6} | settings)
    return np.stack([np.asarray(picture, np.int64) for picture in pictures])


def agree(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one - other).max() <= 1)  # of 255


@pytest.fixture(scope="module")
def start() -> Image.Image:
    return Image.fromarray((np.random.default_rng(0).random((64, 64, 3)) * 255).astype(np.uint8))


KINDS = [("deep-cache", {"interval": 2}), ("t-gate", {"gate": 2})]


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_several_pictures_at_once(name: str, options: dict[str, int], tiny: Path) -> None:
    ours, theirs = driven(tiny, name, **options), by_technique(tiny, name, **options)
    together = painted(ours, PROMPTS, together=2)
    assert agree(together, painted(theirs, PROMPTS, together=2))
    assert agree(together, painted(ours, PROMPTS)), "one after the other"
    several = {"num_inference_steps": 5, "num_images_per_prompt": 2, "output_type": "np"}
    made = [
        each(PROMPTS[0], generator=torch.Generator().manual_seed(3), height=64, width=64, **several).images
        for each in (ours, theirs)
    ]
    assert made[0].shape[0] == 2 and np.abs(made[0] - made[1]).max() < 1 / 255


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    # PyTorch's count from the schedule's first step, ours from the first that is run: the fourth here
    [("deep-cache", {"interval": 2}, {"interval": 2}), ("t-gate", {"gate": 2}, {"gate": 6})],
)
def test_from_a_picture(
    name: str, ours: dict[str, int], theirs: dict[str, int], tiny: Path, start: Image.Image
) -> None:
    settings: dict[str, Any] = {"image": start, "strength": 0.5, "steps": 8, "together": 2}
    made = painted(driven(tiny, name, **ours), PROMPTS, **settings)
    assert agree(made, painted(by_technique(tiny, name, **theirs), PROMPTS, **settings))
    assert not agree(made, painted(pipeline.from_checkpoint(str(tiny)), PROMPTS, **settings))


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_the_last_step_alone_is_a_picture_of_its_own(
    name: str, options: dict[str, int], tiny: Path, start: Image.Image
) -> None:
    """Its timestep is the one at which the picture before it ended: nothing kept of that may be used."""
    ours = driven(tiny, name, **options)
    settings: dict[str, Any] = {"image": start, "strength": 0.26, "steps": 4}
    alone = painted(ours, PROMPTS[:1], **settings)
    assert agree(alone, painted(pipeline.from_checkpoint(str(tiny)), PROMPTS[:1], **settings)), (
        "one whole step"
    )
    painted(ours, PROMPTS[1:], steps=4)
    assert np.array_equal(painted(ours, PROMPTS[:1], **settings), alone)


def test_two_prompts_without_guidance_are_not_taken_for_one_with_it(tiny: Path) -> None:
    """Both begin with the same noise, as the two halves of guidance always have."""
    ours = driven(tiny, "t-gate", gate=1)
    settings: dict[str, Any] = {"guidance": 1.0, "seed": [5, 5]}
    together = painted(ours, PROMPTS, together=2, **settings)
    assert agree(together, painted(ours, PROMPTS, **settings))
    assert not np.array_equal(together[0], together[1])


def test_where_nothing_would_be_merged_it_is_refused(tmp_path: Path) -> None:
    checkpoint = open_source(str(make_tiny_sdxl(tmp_path / "xl")))
    with pytest.raises(UsageError, match="outermost level has none"):
        components_of(techniques.bake(["token-merging"], "onnx", checkpoint))
