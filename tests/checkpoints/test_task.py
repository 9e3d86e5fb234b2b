"""`--task`: the checkpoint as the pipeline of another task is one whose `_class_name` was edited by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import exporter
from exporter import recipes
from exporter.architectures import FAMILIES as CLASSES
from exporter.architectures import components_of
from exporter.artifact import Artifact
from exporter.checkpoints import open_source, resolve
from exporter.checkpoints.overlays import lay_again
from exporter.checkpoints.overlays.task import GROUPS, tasks_of
from exporter.clips import film, in_one_picture
from exporter.errors import ArtifactError, UsageError
from exporter.parity.sources import check_same
from exporter.pipeline import from_checkpoint, paint
from tests import unwritten
from tests.cli.runner import invoke
from tests.families import FAMILIES, VIDEO, control, make
from tests.test_tasks import given, picture

PICTURES = ["text-to-image", "image-to-image", "inpainting"]
CLIPS = ["text-to-video", "image-to-video"]
DOES = {
    **dict.fromkeys(("sd2", "turbo", "taesd", "checked", "sdxl", "sd3", "sd35"), PICTURES),
    **dict.fromkeys(("flux", "flux_schnell"), PICTURES),
    **dict.fromkeys(("controlnet", "two_controlnets", "sdxl_controlnet"), PICTURES),
    **dict.fromkeys(("inpaint", "flux_fill"), PICTURES[2:]),
    "lcm": PICTURES[:2],
    "sdxl_refiner": PICTURES[1:],
    **dict.fromkeys(VIDEO, CLIPS),
}
"""Other families paint from text alone."""
SMALL: dict[str, Any] = {"seed": 3, "steps": 2, "guidance": 3.0, "height": 64, "width": 96, "frames": 9}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tasks")
    return {family: make(family, root / family) for family in (*FAMILIES, *VIDEO)}


def edited(folder: Path, name: str, to: Path) -> Path:
    """A copy whose class was changed by hand."""
    shutil.copytree(folder, to)
    index = json.loads((to / "model_index.json").read_text())
    (to / "model_index.json").write_text(json.dumps({**index, "_class_name": name}))
    return to


def test_every_class_that_is_converted_has_its_task() -> None:
    import diffusers

    known = [name for group in GROUPS for name in group.values()]
    assert sorted(known) == sorted(CLASSES), "each once, and no other"
    assert all(hasattr(diffusers, name) for name in known)


@pytest.mark.parametrize("family", [*FAMILIES, *VIDEO])
def test_what_a_model_does_can_be_asked_for(folders: dict[str, Path], family: str) -> None:
    checkpoint = resolve(folders[family])
    tasks = tasks_of(checkpoint)
    assert list(tasks) == DOES.get(family, PICTURES[:1])
    assert checkpoint.pipeline_class in tasks.values()
    own = components_of(checkpoint)
    for task, name in tasks.items():
        made = open_source(folders[family], task=task)
        assert made.pipeline_class == name
        assert [c.name for c in components_of(made)] == [c.name for c in own]
        assert [o.kind for o in made.overlays] == ([] if name == checkpoint.pipeline_class else ["task"])
    for task in {*PICTURES, *CLIPS} - set(tasks):
        with pytest.raises(UsageError, match=f"does not do '{task}'; it does {', '.join(tasks)}"):
            open_source(folders[family], task=task)


def test_the_clip_is_that_of_the_class_edited_by_hand(folders: dict[str, Path], tmp_path: Path) -> None:
    by_hand = edited(folders["ltx"], "LTXImageToVideoPipeline", tmp_path / "edited")
    asked = {"image": picture(130, 70), **SMALL}
    mine, theirs = (
        np.asarray(in_one_picture(film(pipeline, "a red star", **asked)))
        for pipeline in (
            from_checkpoint(str(folders["ltx"]), task="image-to-video"),
            from_checkpoint(str(by_hand)),
        )
    )
    assert np.array_equal(mine, theirs)
    # And back again: what says the one class does the other's task too.
    back = film(from_checkpoint(str(by_hand), task="text-to-video"), "a red star", **SMALL)
    plain = film(from_checkpoint(str(folders["ltx"])), "a red star", **SMALL)
    assert np.array_equal(np.asarray(in_one_picture(back)), np.asarray(in_one_picture(plain)))


@pytest.mark.parametrize(("family", "task"), [("sd2", "image-to-image"), ("flux", "inpainting")])
def test_pictures_too(folders: dict[str, Path], family: str, task: str) -> None:
    settings = {"seed": 3, "steps": 3, "guidance": 5.0, **given("mask" if task == "inpainting" else "image")}
    one, other = (
        np.asarray(paint(from_checkpoint(str(folders[family]), **laid), ["a red star"], **settings)[0])
        for laid in ({}, {"task": task})
    )
    assert np.array_equal(one, other), "the weights are those, whichever class is written down"


def test_with_other_things_laid_over_it(folders: dict[str, Path], tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    control(UNet2DConditionModel.from_pretrained(folders["sd2"] / "unet")).save_pretrained(tmp_path / "net")
    laid = {"controlnets": [str(tmp_path / "net")], "task": "image-to-image", "scheduler": "euler"}
    made = open_source(folders["sd2"], **laid)
    assert made.pipeline_class == "StableDiffusionControlNetImg2ImgPipeline"
    assert [o.kind for o in made.overlays] == ["task", "controlnet", "scheduler"]
    again = lay_again(resolve(folders["sd2"]), made.overlays)
    assert (again.pipeline_class, again.overlays) == (made.pipeline_class, made.overlays)


def test_a_pipeline_that_no_module_is_written_for(tmp_path: Path) -> None:
    source = unwritten.make("ddpm", tmp_path / "ddpm")
    with pytest.raises(UsageError, match=r"DDPMPipeline.*knows no other task") as error:
        open_source(source, task="text-to-image")
    assert error.value.hint == "Leave out --task."


def test_the_command_line(folders: dict[str, Path], tmp_path: Path) -> None:
    ltx, out = folders["ltx"], tmp_path / "artifact"
    refused = invoke("convert", ltx, "--to", "onnx", "--task", "inpainting", "-o", out)
    refused.failed(2, "does not do 'inpainting'; it does text-to-video, image-to-video", "image-to-video.")
    assert not out.exists()
    shown = invoke("--json", "inspect", ltx).document
    assert shown["tasks"] == CLIPS
    assert invoke("--json", "inspect", ltx, "--task", "image-to-video").document["tasks"] == CLIPS[::-1]
    assert "with --task also: image-to-video" in invoke("inspect", ltx).stdout
    plan = invoke("--json", "convert", ltx, "--to", "onnx", "--task", "image-to-video", "--dry-run").document
    assert plan["pipeline_class"] == "LTXImageToVideoPipeline"
    assert Path(plan["output"]).name == "ltx-onnx-image-to-video"
    plain = invoke("--json", "convert", ltx, "--to", "onnx", "--dry-run").document
    assert plain["digest"] != plan["digest"], "an interrupted run of the one would resume the other"
    picture(130, 70).save(tmp_path / "start.png")
    flags = ["--image", tmp_path / "start.png", "--height", 64, "--width", 96, "--frames", 9, "--steps", 2]
    invoke("run", ltx, "a", "-o", tmp_path / "a.gif", *flags).failed(2, "--task image-to-video")
    assert invoke("run", ltx, "a", "-o", tmp_path / "a.gif", *flags, "--task", "image-to-video").code == 0
    with Image.open(tmp_path / "a.gif") as clip:
        assert clip.n_frames == 9
    invoke("run", ltx, "a", "-o", tmp_path / "b.gif", "--task", "image-to-video").failed(2, "--image FILE")


def test_an_artifact_remembers_it(folders: dict[str, Path], tmp_path: Path) -> None:
    """And the other task's graph is not taken out of the cache for it."""
    names = ["text_encoder", "transformer"]

    def made(name: str, task: str | None) -> Artifact:
        made = exporter.convert(
            str(folders["ltx"]), "onnx", tmp_path / name, components=names, verify=False, task=task
        )
        return made.artifact

    plain, begun = made("plain", None), made("begun", "image-to-video")
    times = [
        next(
            tensor.dims
            for tensor in artifact.manifest.component("transformer").inputs
            if tensor.name == "timestep"
        )
        for artifact in (plain, begun)
    ]
    assert times == [["batch"], ["batch", "video_tokens"]]
    index = json.loads((begun.root / "model_index.json").read_text())
    assert index["_class_name"] == "LTXImageToVideoPipeline"
    check_same(begun.manifest, resolve(folders["ltx"]))
    with pytest.raises(ArtifactError, match="made from a LTXPipeline"):
        check_same(begun.manifest, open_source(folders["ltx"], task="image-to-video"))
    again = recipes.from_manifest(begun.manifest)
    assert again.task == "image-to-video" and recipes.from_manifest(plain.manifest).task is None
    file = tmp_path / "again.yaml"
    file.write_text(recipes.to_yaml(again))
    assert [row.error for row in recipes.check(recipes.read(file))] == [None]
    (row,) = recipes.check(recipes.read(file, ["task=inpainting"]))
    assert isinstance(row.error, UsageError) and row.exit_code == 2
    invoke("inspect", begun.root, "--task", "text-to-video").failed(2, "task is for a checkpoint")


def test_a_class_that_this_diffusers_lacks_is_said_by_name(tmp_path: Path, folders: dict[str, Path]) -> None:
    odd = edited(folders["ltx"], "LTXSomethingPipeline", tmp_path / "odd")
    with pytest.raises(UsageError, match="LTXSomethingPipeline"):
        open_source(odd, task="image-to-video")
