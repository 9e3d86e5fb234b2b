"""`run --control`: what is asked for and cannot be done is one sentence and an exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from exporter.errors import ArtifactError, UsageError
from exporter.pipeline import from_checkpoint, paint
from tests.cli.runner import invoke
from tests.families import make
from tests.test_tasks import build, drawing, picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("two_controlnets", tmp_path_factory.mktemp("control") / "two")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    return from_checkpoint(str(folder))


def test_picture_and_scale_count(pipeline: Any) -> None:
    def painted(*pictures: Image.Image, scales: tuple[float, ...] = ()) -> np.ndarray:
        (made,) = paint(pipeline, ["a star"], steps=2, control=pictures, control_scale=scales)
        return np.asarray(made)

    both = painted(drawing(), picture())
    assert not np.array_equal(both, painted(picture(), drawing())), "each reads its own"
    assert not np.array_equal(both, painted(drawing(), picture(), scales=(1.0, 0.2)))
    assert np.array_equal(both, painted(drawing(), picture(), scales=(1.0,))), "one scale is for all"


def test_the_size_is_that_of_the_picture(pipeline: Any) -> None:
    (made,) = paint(pipeline, ["a"], steps=1, control=[drawing(100, 60), drawing(200, 120)])
    assert made.size == (96, 64)
    (made,) = paint(pipeline, ["a"], steps=1, control=[drawing(128, 64)] * 2, height=64, width=128)
    assert made.size == (128, 64)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "follows a picture"),
        ({"control_scale": [0.5]}, "follows a picture"),
        ({"control": [drawing()]}, "has 2 ControlNets; pictures given: 1"),
        ({"control": [drawing()] * 3}, "has 2 ControlNets; pictures given: 3"),
        ({"control": [drawing()] * 2, "control_scale": [1.0] * 3}, "control scales given: 3"),
        ({"control": [drawing(), drawing(128, 64)]}, "128×64, which does not have the shape of 64×64"),
        ({"control": [drawing()] * 2, "height": 64, "width": 96}, "does not have the shape of 96×64"),
    ],
)
def test_what_cannot_be_done(pipeline: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        paint(pipeline, ["a"], steps=1, **settings)
    assert error.value.hint


def test_an_artifact_without_one_of_them(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="not all ControlNets"):
        build(folder, without="controlnet")


def test_the_command_line(folder: Path, tiny: Path, tmp_path: Path) -> None:
    drawing().save(tmp_path / "edges.png")
    out, edges = tmp_path / "out.png", tmp_path / "edges.png"
    line = ("run", folder, "a star", "-o", out, "--steps", 1)
    ran = invoke(*line, "--control", edges, "--control", edges, "--control-scale", 0.5, "--json")
    assert ran.code == 0, ran
    assert ran.document["control"] == [str(edges)] * 2 and Image.open(out).size == (64, 64)
    invoke(*line).failed(2, "follows a picture", "--control FILE")
    invoke(*line, "--control", edges).failed(2, "pictures given: 1")
    invoke(*line, "--control", tmp_path / "gone.png").failed(3, "gone.png cannot be read as a picture")
    invoke("run", tiny, "a", "-o", out, "--control", edges).failed(2, "has no ControlNet", "--controlnet")
    invoke("run", tiny, "a", "-o", out, "--controlnet", folder / "unet").failed(3, "not a ControlNetModel")
