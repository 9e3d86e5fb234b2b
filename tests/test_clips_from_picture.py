"""LTX-Video from a picture: a time for every token, single frames to the encoder, the clip of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from exporter.architectures import components_of
from exporter.architectures.base import Size
from exporter.checkpoints import resolve
from exporter.clips import film, in_one_picture
from exporter.conversion import convert, make_plan
from exporter.errors import UsageError
from exporter.parity.reference import paint_reference, plan_of
from exporter.pipeline import assemble, from_checkpoint, load
from tests.cli.runner import invoke
from tests.families import make
from tests.test_pipeline import TorchRunner

SMALL: dict[str, Any] = {"seed": 3, "steps": 2, "guidance": 3.0, "height": 64, "width": 96, "frames": 9}
SIZE = Size(batch=2, height=64, width=96, sequence=20, factor=32, frames=9, temporal=8)
START = Image.radial_gradient("L").resize((130, 70)).convert("RGB")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("ltx_image", tmp_path_factory.mktemp("begun") / "ltx_image")


def values(clip: Any) -> np.ndarray:
    return np.asarray(in_one_picture(clip)).astype(int)


def test_every_token_has_a_time_and_the_encoder_takes_one_frame(folder: Path) -> None:
    parts = {c.name: c for c in components_of(resolve(folder))}
    assert list(parts) == ["text_encoder", "transformer", "vae_decoder", "vae_encoder"]
    specs = {spec.name: spec.dims for spec in parts["transformer"].inputs}
    assert specs["timestep"] == ("batch", "video_tokens")
    assert parts["vae_encoder"].inputs[0].dims == (1, 3, 1, "height", "width")
    times = parts["transformer"].example_inputs(SIZE)["timestep"]
    assert times.shape == (2, 12) and not times[:, :6].any() and bool((times[:, 6:] > 0).all())
    for component in parts.values():
        with torch.no_grad():
            outputs = component.reference_module()(**component.example_inputs(SIZE))
        assert [tuple(o.shape) for o in outputs] == [s.shape(SIZE) for s in component.outputs]


def test_stand_ins_film_what_the_library_films(folder: Path) -> None:
    mine = assemble(
        folder, "LTXImageToVideoPipeline", {c.name: TorchRunner(c) for c in components_of(resolve(folder))}
    )
    found = values(film(mine, "a red star", image=START, **SMALL))
    reference = from_checkpoint(str(folder))
    assert np.array_equal(found, values(film(reference, "a red star", image=START, **SMALL)))
    by_hand = reference(
        START.resize((96, 64), Image.Resampling.LANCZOS), "a red star", height=64, width=96, num_frames=9,
        num_inference_steps=2, guidance_scale=3.0, generator=torch.Generator().manual_seed(3),
    ).frames[0]  # fmt: skip
    assert np.array_equal(found, np.concatenate([np.asarray(frame) for frame in by_hand]).astype(int))
    assert not np.array_equal(found, values(film(mine, "a red star", image=START.rotate(180), **SMALL)))


def test_the_verifier_begins_with_a_picture(folder: Path) -> None:
    checkpoint = resolve(folder)
    plan = plan_of(checkpoint, (1, 64, 96, 9), prompts=["a red star"], steps=2, seed=0)
    painted = paint_reference(checkpoint, plan, cache=None)
    assert painted.images[0].shape == (1, 3, 9, 64, 96) and len(painted.latents[0]) == 2
    (encoded,) = painted.calls["vae_encoder"]
    assert encoded.inputs["sample"].shape == (1, 3, 1, 64, 96)
    assert bool(encoded.inputs["sample"].std() > 0.1)
    times = painted.calls["transformer"][0].inputs["timestep"]
    assert times.shape == (2, 12) and not times[:, :6].any() and bool((times[:, 6:] > 0).all())


def test_a_picture_that_is_lacking_or_too_much(folder: Path, tmp_path: Path) -> None:
    START.save(tmp_path / "start.png")
    clip, start = tmp_path / "a.gif", tmp_path / "start.png"
    invoke("run", folder, "a", "-o", clip).failed(2, "begins its clips with a picture")
    plain = make("ltx", tmp_path / "ltx")
    invoke("run", plain, "a", "-o", clip, "--image", start).failed(2, "from text alone")
    invoke("run", folder, "a", "-o", clip, "--image", start, "--mask", start).failed(2, "--mask")
    with pytest.raises(UsageError, match="from text alone"):
        film(from_checkpoint(str(plain)), "a", image=START, **SMALL)


@pytest.mark.full
@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_converts_verifies_and_films(target: str, folder: Path, tmp_path: Path) -> None:
    plan = make_plan(str(folder), target, tmp_path / "artifact")
    done = convert(plan, verify_settings={"steps": 2, "samples": 2})
    assert done.verdict == "PASS", done.summary
    START.save(tmp_path / "start.png")
    given = ["--image", tmp_path / "start.png", "--height", 64, "--width", 96, "--frames", 9, "--steps", 2]
    ran = invoke("run", done.artifact.root, "a star", "-o", tmp_path / "clip", *given)
    assert ran.code == 0 and len(list((tmp_path / "clip").glob("*.png"))) == 9
    mine, theirs = (
        values(film(load(place, precision_hint=hint), "a red star", image=START, **SMALL))
        for place, hint in ((done.artifact.root, "f32"), (folder, None))
    )
    assert np.abs(mine - theirs).max() <= 2


@pytest.mark.full
def test_static(folder: Path, tmp_path: Path) -> None:
    plan = make_plan(str(folder), "onnx", tmp_path / "artifact", {"static": "1x64x96x9"})
    done = convert(plan, verify_settings={"steps": 2, "samples": 1})
    assert done.verdict == "PASS", done.summary
    clip = film(load(done.artifact.root), "a", steps=2, image=START)
    assert (len(clip.frames), clip.width, clip.height) == (9, 96, 64)
