"""The generic route with pipelines that are given a picture: to change, to enlarge, to measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from exporter.architectures import components_of, generic
from exporter.architectures.generic.ports import arguments, from_picture, native_size
from exporter.checkpoints import resolve
from exporter.conversion import Conversion, convert, make_plan
from exporter.errors import UsageError
from exporter.pipeline import load, paint
from tests.unwritten import FROM_PICTURES, make

START = Image.radial_gradient("L").resize((130, 70)).convert("RGB")
PIXELS = ("batch", 3, "height", "width")
LATENTS = ("latent_height", "latent_width")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pictures")
    return {name: make(name, root / name) for name in FROM_PICTURES}


@pytest.fixture(scope="module")
def changed(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    place = tmp_path_factory.mktemp("pix2pix") / "artifact"
    plan = make_plan(str(folders["instruct_pix2pix"]), "onnx", place)
    return convert(plan, verify_settings={"steps": 2, "samples": 1})


def dims(folder: Path) -> dict[str, dict[str, tuple[int | str, ...]]]:
    return {
        c.name: {spec.name: spec.dims for spec in (*c.inputs, *c.outputs)}
        for c in components_of(resolve(folder))
    }


def test_a_picture_is_encoded_and_its_size_is_a_symbol(folders: dict[str, Path]) -> None:
    found = dims(folders["instruct_pix2pix"])
    assert list(found) == ["text_encoder", "vae_encoder", "unet", "vae_decoder"]
    assert found["vae_encoder"] == {"x": PIXELS, "latent_parameters": ("batch", 8, *LATENTS)}
    assert found["unet"]["sample"] == ("batch", 8, *LATENTS)
    rows = {c.name: c.rows for c in components_of(resolve(folders["instruct_pix2pix"]))}
    assert rows == {"text_encoder": 1, "vae_encoder": 1, "unet": 3, "vae_decoder": 1}
    assert generic.recording_of(resolve(folders["instruct_pix2pix"])).picture


def test_an_upscaler_is_told_by_the_small_picture(folders: dict[str, Path]) -> None:
    found = dims(folders["upscaler"])
    assert found["unet"]["sample"] == ("batch", 7, "height", "width")
    assert found["unet"]["class_labels"] == ("batch",)
    assert found["vae_decoder"]["sample"] == ("batch", 3, "height_times_4", "width_times_4")


def test_a_map_of_depths_needs_no_prompt(folders: dict[str, Path]) -> None:
    found = dims(folders["marigold"])
    assert found["text_encoder"]["input_ids"] == (1, 2)  # the empty prompt, once
    assert found["vae_encoder"]["x"] == PIXELS
    assert generic.recording_of(resolve(folders["marigold"])).pictures


def test_it_is_verified_with_pictures_of_the_librarys_pipeline(changed: Conversion) -> None:
    assert changed.verdict == "PASS", changed.summary
    report = json.loads((changed.artifact.root / "verification" / "report.json").read_text())
    named = {component["name"]: component for component in report["components"]}
    kinds = {case["kind"] for run in named["vae_encoder"]["runs"] for case in run["cases"]}
    assert "captured" in kinds
    assert report["pipeline"]["verdict"] == "PASS"


@pytest.mark.parametrize("further", [{}, {"negative_prompt": "a blue circle"}, {"height": 64, "width": 192}])
def test_it_paints_what_the_librarys_pipeline_does(
    further: dict[str, Any], changed: Conversion, folders: dict[str, Path]
) -> None:
    mine, theirs = (
        paint(load(place), ["make it red"], steps=2, image=START, **further)[0]
        for place in (changed.artifact.root, folders["instruct_pix2pix"])
    )
    size = (further.get("width", 128), further.get("height", 64))
    assert mine.size == theirs.size == size
    pipeline = diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(folders["instruct_pix2pix"])
    by_hand = pipeline(
        "make it red", START.resize(size, Image.Resampling.LANCZOS), num_inference_steps=2,
        guidance_scale=7.5, negative_prompt=further.get("negative_prompt"),
        generator=torch.Generator().manual_seed(0),
    ).images[0]  # fmt: skip
    values = [np.asarray(each).astype(int) for each in (mine, theirs, by_hand)]
    assert np.array_equal(values[1], values[2]) and values[1].std() > 10
    assert np.abs(values[0] - values[1]).max() <= 2


def test_a_prompt_a_negative_one_and_the_picture_count(changed: Conversion) -> None:
    opened = load(changed.artifact.root)
    first, other, negative, shown = (
        np.asarray(paint(opened, [prompt], steps=2, **given)[0]).astype(int)
        for prompt, given in (
            ("a", {"image": START}),
            ("b", {"image": START}),
            ("a", {"image": START, "negative_prompt": "c"}),
            ("a", {"image": START.rotate(180)}),
        )
    )
    assert all(np.abs(first - each).max() > 2 for each in (other, negative, shown))


def test_a_picture_that_is_lacking(changed: Conversion) -> None:
    with pytest.raises(UsageError, match="InstructPix2PixPipeline starts from a picture") as error:
        paint(load(changed.artifact.root), ["a"], steps=1)
    assert error.value.hint == "Give it one with --image FILE."
    with pytest.raises(UsageError, match="has no strength"):
        paint(load(changed.artifact.root), ["a"], steps=1, image=START, strength=0.5)
    with pytest.raises(UsageError, match="has no --mask"):
        paint(load(changed.artifact.root), ["a"], steps=1, image=START, mask=START)


@pytest.mark.full
def test_sizes_that_are_baked(folders: dict[str, Path], tmp_path: Path) -> None:
    plan = make_plan(
        str(folders["instruct_pix2pix"]), "onnx", tmp_path / "artifact", options={"static": "1x64x64"}
    )
    done = convert(plan, verify_settings={"steps": 2, "samples": 1})
    assert done.verdict == "PASS", done.summary
    opened = load(done.artifact.root)
    assert paint(opened, ["a"], steps=1, image=START, guidance=1.5)[0].size == (64, 64)
    with pytest.raises(UsageError, match="baked for 64×64"):
        paint(opened, ["a"], steps=1, image=START, width=128)


def test_the_size_that_components_were_baked_for(folders: dict[str, Path]) -> None:
    recording = generic.recording_of(resolve(folders["instruct_pix2pix"]))
    free = dims(folders["instruct_pix2pix"])
    assert recording.baked(free) is None
    held = {"latent_height": 4, "latent_width": 6, "height": 32, "width": 48}
    baked = {
        name: {key: tuple(held.get(str(d), d) for d in shape) for key, shape in each.items()}
        for name, each in free.items()
    }
    assert recording.baked(baked) == (32, 48)


def test_all_steps_of_a_run_that_begins_in_the_middle(folders: dict[str, Path]) -> None:
    class Begins:
        vae_scale_factor = 8

        def __call__(
            self,
            prompt: str,
            image: Any,
            strength: float = 0.8,
            num_inference_steps: int = 50,
            generator: Any = None,
        ) -> None: ...

    given = arguments(
        Begins(), prompts=["a"], height=64, width=64, steps=3, generators=[None], pictures=[START],  # type: ignore[list-item]
        further=from_picture(Begins(), 3),
    )  # fmt: skip
    assert given["strength"] == 0.5 and given["num_inference_steps"] == 6 and given["image"] is START
    assert native_size(Begins()) == (512, 512, 8)
