"""Every family and task: stand-ins around PyTorch paint exactly what diffusers paints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from exporter.architectures import components_of
from exporter.checkpoints import resolve
from exporter.errors import ArtifactError, InputError, UsageError
from exporter.pipeline import assemble, for_task, from_checkpoint, open_picture, paint
from tests.cli.runner import invoke
from tests.families import FAMILIES, make
from tests.test_pipeline import TorchRunner

TASK = {
    "inpaint": "mask", "flux_fill": "mask", "sdxl_refiner": "image", "controlnet": "control",
    "two_controlnets": "controls", "sdxl_controlnet": "control", "t2i_adapter": "control",
    "sdxl_t2i_adapter": "control",
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tasks")
    return {family: make(family, root / family) for family in FAMILIES}


@pytest.fixture(scope="module")
def built(folders: dict[str, Path]) -> dict[str, Any]:
    """Pipelines of stand-ins."""
    return {family: build(folder) for family, folder in folders.items()}


def build(folder: Path, without: str = "") -> Any:
    root = folder.with_name(f"{folder.name}-artifact")
    if not root.exists():
        shutil.copytree(folder, root)
        shutil.copytree(root / "vae", root / "vae_decoder")
    runners = {c.name: TorchRunner(c) for c in components_of(resolve(folder)) if c.name != without}
    return assemble(root, json.loads((root / "model_index.json").read_text())["_class_name"], runners)


def picture(width: int = 64, height: int = 64) -> Image.Image:
    values = np.random.default_rng(4).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def mask() -> Image.Image:
    values = np.zeros((64, 64), np.uint8)
    values[:, :32] = 255
    return Image.fromarray(values)


def drawing(width: int = 64, height: int = 64) -> Image.Image:
    """What an edge detector leaves of a box."""
    made = Image.new("RGB", (width, height))
    ImageDraw.Draw(made).rectangle((width // 4, height // 4, width // 2, height // 2), outline="white")
    return made


def given(task: str) -> dict[str, Any]:
    start: dict[str, Any] = {"image": picture(), "strength": 0.5}
    hole: dict[str, Any] = {"image": picture(), "mask": mask(), "strength": 1.0}
    control = {"control": [drawing()], "control_scale": [0.7]}
    return {
        "text": {},
        "image": start,
        "mask": hole,
        "control": control,
        "controls": {"control": [drawing(), picture()], "control_scale": [0.7, 0.4]},
        "control image": control | start,
        "control mask": control | hole,
    }[task]


@pytest.mark.parametrize(
    ("family", "task"),
    [(family, TASK.get(family, "text")) for family in FAMILIES]
    + [(family, "image") for family in ("sd2", "sdxl", "lcm", "sd3", "flux")]
    + [(family, "mask") for family in ("sd2", "sdxl", "sd35", "flux")]
    + [("controlnet", "control image")]
    + [
        pytest.param(family, task, marks=pytest.mark.full)
        for family, task in (("controlnet", "control mask"), ("sdxl_controlnet", "control image"))
    ],
)
def test_same_picture_as_the_reference(
    folders: dict[str, Path], built: dict[str, Any], family: str, task: str
) -> None:
    settings = {"seed": 3, "steps": 4, "guidance": 5.0, **given(task)}
    mine = paint(built[family], ["a red star"], **settings)
    theirs = paint(from_checkpoint(str(folders[family])), ["a red star"], **settings)
    assert np.array_equal(np.asarray(mine[0]), np.asarray(theirs[0]))
    other = paint(built[family], ["two dogs"], **settings)
    assert not np.array_equal(np.asarray(mine[0]), np.asarray(other[0])), "the prompt matters"


def test_the_mask_keeps_what_is_black(built: dict[str, Any]) -> None:
    (result,) = paint(built["sd2"], ["a"], steps=2, **given("mask"))
    (again,) = paint(built["sd2"], ["b"], steps=2, seed=9, **given("mask"))
    difference = np.abs(np.asarray(result).astype(int) - np.asarray(again))
    assert difference[:, :24].mean() > 5 * difference[:, 48:].mean()


def test_a_picture_keeps_its_size(built: dict[str, Any]) -> None:
    settings = {"steps": 2, "strength": 0.5}
    assert paint(built["sd2"], ["a"], image=picture(100, 60), **settings)[0].size == (96, 64)
    assert paint(built["sd2"], ["a"], image=picture(100, 60), width=64, **settings)[0].size == (64, 64)


@pytest.mark.parametrize(
    ("family", "settings", "said"),
    [
        ("inpaint", {}, "repaints part of a picture"),
        ("inpaint", {"image": picture()}, "repaints part of a picture"),
        ("sdxl_refiner", {}, "starts from a picture"),
        ("sd2", {"mask": mask()}, "A mask needs the picture"),
        ("sd2", {"strength": 0.5}, "A strength needs a picture"),
        ("sd2", {"image": picture(), "strength": 1.5}, "above 0 and at most 1"),
        ("sd2", {"image": picture(), "strength": float("nan")}, "above 0 and at most 1"),
        ("sd2", {"image": picture(), "strength": 0.1}, "leave none to do"),
        ("lcm", {"image": picture(), "mask": mask()}, "no pipeline that repaints"),
        ("lcm", {"negative_prompt": "x"}, "takes no negative prompt"),
    ],
)
def test_tasks_a_model_cannot_do(
    built: dict[str, Any], family: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        paint(built[family], ["a"], **{"steps": 4, **settings})


def test_a_picture_needs_the_encoder(folders: dict[str, Path]) -> None:
    with pytest.raises(ArtifactError, match="no vae_encoder"):
        paint(build(folders["sd2"], without="vae_encoder"), ["a"], steps=2, **given("image"))


@pytest.mark.parametrize(("family", "part"), [("sdxl", "text_encoder"), ("sdxl_refiner", "text_encoder_2")])
def test_an_artifact_without_a_text_encoder(folders: dict[str, Path], family: str, part: str) -> None:
    with pytest.raises(ArtifactError, match=f"has no {part}"):
        build(folders[family], without=part)


def test_the_refiner_is_told_of_its_score(built: dict[str, Any]) -> None:
    assert built["sdxl_refiner"].config.requires_aesthetics_score is True
    assert for_task(built["sdxl_refiner"], image=True, mask=False) is built["sdxl_refiner"]


def test_a_file_that_is_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n not really")
    with pytest.raises(InputError, match="cannot be read as a picture"):
        open_picture(path)


def test_the_command_line_starts_from_a_picture(folders: dict[str, Path], tmp_path: Path) -> None:
    picture(80, 64).save(tmp_path / "start.png")
    out = tmp_path / "out.png"
    settings = ["--steps", "2", "--strength", "0.5", "--image", tmp_path / "start.png"]
    ran = invoke("run", folders["sd2"], "a star", "-o", out, *settings)
    assert ran.code == 0, ran
    assert Image.open(out).size == (80, 64)
    assert invoke("run", folders["sd2"], "a", "-o", out, "--mask", tmp_path / "start.png").code == 2
    (tmp_path / "bad.png").write_text("no picture")
    assert invoke("run", folders["sd2"], "a", "-o", out, "--image", tmp_path / "bad.png").code == 3
