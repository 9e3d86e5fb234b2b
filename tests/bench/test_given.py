"""Every family is measured: what wants a picture is given one, the same for all; texts are equally long."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from exporter import bench, conversion, pipeline
from exporter.bench import Entrant, Settings
from exporter.bench.given import DRAWING, Given, as_files, given_to
from exporter.bench.tokens import common_tokens
from exporter.bench.worker import Worker
from exporter.errors import ExporterError, InputError, UsageError
from tests import ip_adapters
from tests.cli.runner import invoke
from tests.demo.pages import read
from tests.families import make

SMALL: dict[str, Any] = {"runs": 1, "warm_up": 0, "steps": 4}
PLAIN = Settings("a red star", steps=4)
WANTED = {
    "sd2": [],
    "inpaint": ["image", "mask"],
    "flux_fill": ["image", "mask"],
    "sdxl_refiner": ["image"],
    "controlnet": ["control"],
    "two_controlnets": ["control"],
    "t2i_adapter": ["control"],
    "ltx": [],
    "ltx_image": ["image"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("given")
    return {family: make(family, root / family) for family in (*WANTED, "sd3")}


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "harbour.png"
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(path)
    return path


def given(loaded: Any, settings: Settings) -> Given:
    """As a worker has the settings: from JSON."""
    return given_to(loaded, json.loads(json.dumps(asdict(as_files(settings)))))


@pytest.mark.parametrize("family", WANTED)
def test_what_a_model_wants_is_drawn(folders: dict[str, Path], family: str) -> None:
    frames = 9 if family.startswith("ltx") else None
    size = {"height": 64, "width": 64} if frames else {}
    worker = Worker()
    opened = worker.open(asdict(Entrant(str(folders[family]))), asdict(replace(PLAIN, frames=frames, **size)))
    assert opened["given"] == dict.fromkeys(WANTED[family], DRAWING)
    painted = worker.paint()
    parts = set(painted["parts"])
    assert ("controlnet" in parts) == ("controlnet" in family) and ("adapter" in parts) == (
        family[:3] == "t2i"
    )
    assert "vae_decoder" in parts and painted["arithmetic"] == "float32"


def test_an_adapter_looks_at_a_drawing(folders: dict[str, Path], tmp_path: Path) -> None:
    adapter = ip_adapters.write(folders["sd2"] / "unet", tmp_path / "adapter")
    loaded = pipeline.load(folders["sd2"], ip_adapters=[f"{adapter}:{ip_adapters.WEIGHTS}"])
    found = given(loaded, PLAIN)
    assert found.names == {"ip_adapter_image": DRAWING}
    assert pipeline.paint(loaded, ["a"], steps=2, **found.arguments)


def test_pictures_that_are_named_and_drawn_go_together(folders: dict[str, Path], photo: Path) -> None:
    """The mask that nobody gave has the shape of the picture that somebody gave, and two drawings differ."""
    loaded = pipeline.load(folders["inpaint"])
    found = given(loaded, replace(PLAIN, image=str(photo)))
    assert found.names == {"image": "harbour.png", "mask": DRAWING}
    assert found.arguments["mask"].size == (96, 64)
    (picture,) = pipeline.paint(loaded, ["a"], steps=2, **found.arguments)
    assert picture.size == (96, 64)
    first, second = given(pipeline.load(folders["two_controlnets"]), PLAIN).arguments["control"]
    assert first.tobytes() != second.tobytes()
    assert given(pipeline.load(folders["sd2"]), replace(PLAIN, image=str(photo))).names == {
        "image": "harbour.png"
    }


@pytest.mark.parametrize(
    ("family", "settings", "said"),
    [
        ("sd2", {"control": ("harbour.png",)}, "has no ControlNet"),
        ("sd2", {"ip_adapter_image": "harbour.png"}, "has no IP-Adapter"),
        ("sd2", {"mask": "harbour.png"}, "A mask needs the picture"),
        ("sd2", {"strength": 0.5}, "A strength needs a picture"),
        ("sd2", {"frames": 9}, "only video models"),
        ("ltx", {"image": "harbour.png"}, "clips from text alone"),
        ("ltx_image", {"mask": "harbour.png"}, "--mask"),
        ("two_controlnets", {"control": ("harbour.png",)}, "2 ControlNets"),
    ],
)
def test_what_no_entrant_takes_is_refused_as_run_refuses_it(
    folders: dict[str, Path], photo: Path, family: str, settings: dict[str, Any], said: str
) -> None:
    for name in ("mask", "ip_adapter_image", "image"):
        settings = settings | ({name: str(photo)} if name in settings else {})
    settings = settings | ({"control": (str(photo),)} if "control" in settings else {})
    worker = Worker()
    with pytest.raises(UsageError, match=said):
        worker.open(asdict(Entrant(str(folders[family]))), asdict(replace(PLAIN, **settings)))
        worker.paint()


@pytest.mark.full
def test_the_command_says_what_was_given(folders: dict[str, Path], photo: Path, tmp_path: Path) -> None:
    page = tmp_path / "bench.html"
    few = ["--runs", 1, "--warm-up", 0, "--steps", 4, "--page", page]
    ran = invoke("bench", folders["sd2"], folders["inpaint"], "--json", *few)
    assert ran.code == 0, ran.stderr
    document = json.loads(ran.stdout)
    assert document["given"] == {"image": DRAWING, "mask": DRAWING}
    plain, repainted = document["rows"]
    assert plain["given"] == {} and repainted["psnr"] is None  # of other pictures, which says nothing
    assert "not compared" in repainted["notes"][0]
    text = read(page.read_text(encoding="utf-8")).text
    assert "image: the verifier's drawing" in text and "not compared" in text
    ran = invoke("bench", folders["sd2"], "--image", photo, *few)
    assert ran.code == 0 and "given: image: harbour.png" in ran.stdout
    ran = invoke("bench", folders["sd2"], "--control", photo, *few)
    assert ran.code == 2 and "has no ControlNet" in ran.stdout


def test_requests_are_refused_before_anything_is_opened(folders: dict[str, Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    with pytest.raises(InputError, match="cannot be read as a picture"):
        bench.run([str(folders["sd2"])], image=str(bad))
    ran = invoke("bench", folders["sd2"], "--image", bad)
    assert ran.code == 3 and "opening" not in ran.stderr


def converted(source: Path, target: str, out: Path, options: dict[str, Any], **plan: Any) -> Path:
    planned = conversion.make_plan(str(source), target, out, options, verify=False, **plan)
    return conversion.convert(planned).artifact.root


def test_all_paint_with_the_tokens_that_artifacts_were_baked_for(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("coremltools")
    part = {"components": ["text_encoder_3"]}
    swift = converted(folders["sd3"], "coreml", tmp_path / "swift", {}, **part)
    entrants = [Entrant(str(folders["sd3"])), Entrant(str(tmp_path / "none")), Entrant(str(swift))]
    assert common_tokens(entrants) == 77
    assert common_tokens(entrants[:2]) is None
    fixed = converted(folders["sd3"], "torchscript", tmp_path / "fixed", {"static": ["1x64x64"]}, **part)
    with pytest.raises(UsageError, match=r"77 tokens of T5 and .*fixed for 256"):
        common_tokens([*entrants, Entrant(str(fixed))])
    with pytest.raises(ExporterError, match="77 tokens of T5"):
        bench.run([str(swift), str(fixed)])


@pytest.mark.full
def test_an_artifact_of_stable_diffusion_3_for_swift_is_as_good_as_it_is(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Against a checkpoint that reads 256 tokens it looked far off."""
    pytest.importorskip("coremltools")
    swift = converted(folders["sd3"], "coreml", tmp_path / "swift", {})
    result = bench.run([str(folders["sd3"]), str(swift)], **SMALL)
    assert result.settings.tokens == 77 and result.exit_code == 0
    assert result.rows[1].psnr is not None and result.rows[1].psnr > 50


@pytest.mark.full
@pytest.mark.parametrize("family", ["inpaint", "sdxl_refiner", "controlnet", "t2i_adapter", "ltx_image"])
def test_a_checkpoint_and_its_artifact_need_no_flags(
    folders: dict[str, Path], family: str, tmp_path: Path
) -> None:
    made = converted(folders[family], "onnx", tmp_path / family, {})
    size = {"height": 64, "width": 64, "frames": 9} if family == "ltx_image" else {}
    result = bench.run([str(folders[family]), str(made)], **SMALL, **size)
    assert [row.error for row in result.rows] == [None, None]
    assert result.given == dict.fromkeys(WANTED[family], DRAWING)
    assert result.rows[1].psnr is not None and result.rows[1].psnr > 50
