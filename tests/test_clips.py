"""Clips: stand-ins film exactly what diffusers films, and files hold the frames that were made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from exporter.architectures import components_of
from exporter.architectures.base import Size
from exporter.checkpoints import resolve
from exporter.clip_files import Clip, check_clip_path, write_clip
from exporter.clips import film, in_one_picture, makes_clips
from exporter.errors import BackendMissing, DestinationError, UsageError
from exporter.parity.reference import paint_reference, plan_of
from exporter.pipeline import assemble, from_checkpoint
from tests.cli.runner import invoke
from tests.families import VIDEO, make
from tests.test_pipeline import TorchRunner

SMALL: dict[str, Any] = {"seed": 3, "steps": 2, "guidance": 3.0, "height": 64, "width": 96, "frames": 9}
FLAGS = ["--steps", 2, "--height", 64, "--width", 96]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("clips")
    return {family: make(family, root / family) for family in VIDEO}


def build(folder: Path, baked: Size | None = None, *, published: bool = True) -> Any:
    """A pipeline of stand-ins, over the small files of an artifact.

    Args:
        published: Latents' statistics are in the decoder's config; else among the weights beside it.
    """
    root = folder.with_name(f"{folder.name}-{published}")
    parts = components_of(resolve(folder))
    if not root.exists():
        shutil.copytree(folder, root)
        if published:
            decoder = next(c for c in parts if c.name == "vae_decoder")
            (root / "vae_decoder").mkdir()
            config = {**decoder.config, **decoder.published()}
            (root / "vae_decoder" / "config.json").write_text(json.dumps(config))
    runners = {c.name: TorchRunner(c, baked if c.name.startswith("vae") else None) for c in parts}
    return assemble(root, "LTXPipeline", runners)


def same(one: Clip, other: Clip) -> bool:
    return np.array_equal(np.asarray(in_one_picture(one)), np.asarray(in_one_picture(other)))


@pytest.mark.parametrize("family", VIDEO)
def test_same_clip_as_the_reference(folders: dict[str, Path], family: str) -> None:
    mine = build(folders[family])
    theirs = film(from_checkpoint(str(folders[family])), "a red star", **SMALL)
    found = film(mine, "a red star", **SMALL)
    assert (len(found.frames), found.width, found.height, found.fps) == (9, 96, 64, 25.0)
    assert same(found, theirs)
    assert not same(film(mine, "two dogs", **SMALL), theirs), "the prompt matters"
    assert not same(film(mine, "a red star", **SMALL, fps=5), theirs), "the model is told of the rate"
    assert not same(found, Clip(found.frames[::-1], 25)), "frames differ"


def test_the_verifier_films_as_many_frames_as_it_says(folders: dict[str, Path]) -> None:
    checkpoint = resolve(folders["ltx"])
    plan = plan_of(checkpoint, (1, 64, 96, 17), prompts=["a red star"], steps=2, seed=0)
    (clips,) = paint_reference(checkpoint, plan, cache=None).images
    assert clips.shape == (1, 3, 17, 64, 96)


def test_statistics_among_the_weights(folders: dict[str, Path]) -> None:
    plain = build(folders["ltx"], published=False)
    assert same(film(plain, "a", **SMALL), film(build(folders["ltx"]), "a", **SMALL))


def test_a_baked_clip(folders: dict[str, Path]) -> None:
    baked = Size(batch=1, height=64, width=96, factor=32, frames=9, temporal=8)
    pipeline = build(folders["ltx"], baked)
    settings = {"seed": 3, "steps": 2, "guidance": 3.0}
    clip = film(pipeline, "a", **settings)
    assert (len(clip.frames), clip.width, clip.height) == (9, 96, 64)
    with pytest.raises(UsageError, match="baked for 9 frames of 64×96 pixels, not 17 of 64×96"):
        film(pipeline, "a", **settings, frames=17)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"frames": 10}, r"clips of 8k \+ 1 frames, not of 10"),
        ({"frames": 0}, "0"),
        ({"height": 60}, "multiples of 32, not 60×96"),
        ({"width": 100}, "multiples of 32, not 64×100"),
    ],
)
def test_clips_that_the_model_cannot_make(folders: dict[str, Path], given: dict[str, int], said: str) -> None:
    if given == {"frames": 0}:
        assert invoke("run", folders["ltx"], "a", "-o", "x.gif", "--frames", 0).code == 2
        return
    with pytest.raises(UsageError, match=said):
        film(build(folders["ltx"]), "a", **(SMALL | given))


def test_a_gif_and_a_folder_from_the_command_line(folders: dict[str, Path], tmp_path: Path) -> None:
    ran = invoke("--json", "run", folders["ltx"], "a star", "-o", tmp_path / "a.gif", *FLAGS, "--frames", 9)
    assert ran.code == 0, ran
    assert ran.document["frames"] == 9 and ran.document["fps"] == 25
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"]) == (9, (96, 64), 40)
    given = ["-o", tmp_path / "frames", *FLAGS, "--frames", 9, "--fps", 12]
    assert invoke("run", folders["ltx"], "a star", *given).code == 0
    names = sorted(path.name for path in (tmp_path / "frames").iterdir())
    assert names == [f"frame-{n:04d}.png" for n in range(1, 10)]
    assert Image.open(tmp_path / "frames" / names[0]).size == (96, 64)
    again = invoke("run", folders["ltx"], "a star", *given)
    again.failed(2, "holds something")


def moving(count: int = 9) -> Clip:
    frames = []
    for number in range(count):
        frame = Image.new("RGB", (64, 32), (40, 40, 40))
        frame.paste((250, 30, 30), (6 * number, 8, 6 * number + 8, 16))
        frames.append(frame)
    return Clip(frames, 12)


def test_an_mp4_holds_every_frame(tmp_path: Path) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "a.mp4"
    check_clip_path(path)
    write_clip(moving(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    reader = ffmpeg.read_frames(str(path))
    head = next(reader)
    decoded = [np.frombuffer(data, np.uint8).reshape(32, 64, 3) for data in reader]
    assert (head["size"], head["fps"], head["codec"]) == ((64, 32), 12.0, "h264") and len(decoded) == 9
    for number, picture in enumerate(decoded):  # the square is where it was drawn
        place = picture[8:16, :, 0].mean(0).argmax()
        assert abs(int(place) - 6 * number) <= 8, number


def test_an_mp4_from_the_command_line(folders: dict[str, Path], tmp_path: Path) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    ran = invoke("run", folders["ltx"], "a star", "-o", tmp_path / "a.mp4", *FLAGS, "--frames", 9)
    assert ran.code == 0, ran
    assert ffmpeg.count_frames_and_secs(str(tmp_path / "a.mp4"))[0] == 9


def test_mp4_without_its_encoder_names_the_extra(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from exporter import clip_files

    monkeypatch.setattr(clip_files, "find_spec", lambda name: None)
    with pytest.raises(BackendMissing) as error:
        write_clip(moving(), tmp_path / "a.mp4")
    assert error.value.hint is not None and 'pip install "exporter[video]"' in error.value.hint
    ran = invoke("run", folders["ltx"], "a star", "-o", tmp_path / "a.mp4")
    ran.failed(4, "imageio-ffmpeg")


def test_a_gif_moves(tmp_path: Path) -> None:
    write_clip(moving(), tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 9 and gif.info["duration"] == 80
        for number in range(9):
            gif.seek(number)
            assert gif.convert("RGB").getpixel((6 * number + 4, 12))[0] > 200


def test_where_a_clip_cannot_go(tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match="no suffix of a clip"):
        check_clip_path(tmp_path / "a.avi")
    with pytest.raises(DestinationError, match="is no folder"):
        check_clip_path(tmp_path / "none" / "a.gif")
    (tmp_path / "b.gif").mkdir()
    with pytest.raises(DestinationError, match="is a folder"):
        check_clip_path(tmp_path / "b.gif")
    (tmp_path / "c").write_text("")
    with pytest.raises(DestinationError, match="is a file"):
        check_clip_path(tmp_path / "c")


def test_flags_of_the_other_kind(folders: dict[str, Path], tiny: Path, tmp_path: Path) -> None:
    assert makes_clips(str(folders["ltx"])) is True and makes_clips(str(tiny)) is False
    out = tmp_path / "a.png"
    invoke("run", tiny, "a", "-o", out, "--frames", 9).failed(2, "only video models make clips")
    invoke("run", tiny, "a", "-o", out, "--fps", 9).failed(2, "only video models make clips")
    clip = tmp_path / "a.gif"
    invoke("run", folders["ltx"], "a", "-o", clip, "--strength", 0.5).failed(2, "from text alone")
    invoke("run", folders["ltx"], "a", "-o", out).failed(2, "no suffix of a clip")
