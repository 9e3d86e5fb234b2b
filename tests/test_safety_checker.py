"""A checkpoint's safety checker from conversion to the picture: asked, left out, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from exporter.architectures import components_of
from exporter.architectures.safety_checker import shown
from exporter.artifact import Artifact
from exporter.checkpoints import resolve
from exporter.conversion import convert, make_plan
from exporter.pipeline import load
from tests.checkers import ALWAYS, NEVER, checker, give
from tests.cli.runner import invoke

pytest.importorskip("onnxruntime")
FORMATS = ["onnx", "torchscript"]
PROMPT = "a red star"
SEEDS = (5, 6, 7)
SETTINGS: dict[str, Any] = {
    "prompt": PROMPT, "num_inference_steps": 2, "height": 64, "width": 64, "output_type": "np",
}  # fmt: skip
RUN = (PROMPT, "--steps", 2, "--height", 64, "--width", 64, "--seed", SEEDS[0], "--json")


def paint(pipeline: Any, seed: int = SEEDS[0]) -> Any:
    return pipeline(**SETTINGS, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def sources(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints whose checker finds something always, never, or in some of the pictures of `SEEDS`."""
    root = tmp_path_factory.mktemp("checked")
    thresholds = {"always": ALWAYS, "never": NEVER, "open": 0.0}
    found = {name: give(tiny, root / name, checker(value)) for name, value in thresholds.items()}
    pipeline = load(found["open"], safety_checker=False)
    (component,) = [c for c in components_of(resolve(found["open"])) if c.name == "safety_checker"]
    pictures = np.concatenate([paint(pipeline, seed).images for seed in SEEDS])
    looks = shown(resolve(found["open"]), torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1)
    with torch.no_grad():
        highest = component.reference_module()(clip_input=looks)[1].max(dim=1).values.sort().values
    assert highest[-1] - highest[0] > 0.01
    place = int((highest[1:] - highest[:-1]).argmax())
    middle = float(highest[place] + highest[place + 1]) / 2
    return found | {"some": give(tiny, root / "some", checker(middle))}


@pytest.fixture(scope="module")
def artifacts(sources: dict[str, Path]) -> dict[tuple[str, str], Path]:
    wanted = [("always", "onnx"), ("never", "onnx"), ("some", "onnx"), ("always", "torchscript")]
    found = {}
    for name, target in wanted:
        out = sources[name].with_name(f"{name}-{target}")
        found[name, target] = convert(
            make_plan(str(sources[name]), target, out, {}, verify=False)
        ).artifact.root
    return found


@pytest.mark.parametrize("target", FORMATS)
def test_what_is_found_is_black(artifacts: dict[tuple[str, str], Path], target: str) -> None:
    result = paint(load(artifacts["always", target], trust=True))
    assert result.nsfw_content_detected == [True]
    assert result.images.shape == (1, 64, 64, 3) and not result.images.any()


@pytest.mark.parametrize("target", FORMATS)
def test_it_can_be_left_alone(
    artifacts: dict[tuple[str, str], Path], sources: dict[str, Path], target: str
) -> None:
    pipeline = load(artifacts["always", target], trust=True, safety_checker=False)
    reference = load(sources["always"], safety_checker=False)
    assert pipeline.safety_checker is None and reference.safety_checker is None
    result, expected = paint(pipeline), paint(reference)
    assert expected.images.std() > 0.01
    assert np.abs(result.images - expected.images).max() <= 1e-4


def test_what_is_not_found_is_shown(artifacts: dict[tuple[str, str], Path], sources: dict[str, Path]) -> None:
    result, expected = paint(load(artifacts["never", "onnx"])), paint(load(sources["never"]))
    assert result.nsfw_content_detected == expected.nsfw_content_detected == [False]
    assert np.abs(result.images - expected.images).max() <= 1e-4


@pytest.mark.parametrize("kind", ["artifact", "checkpoint"])
def test_run_says_what_was_withheld(
    artifacts: dict[tuple[str, str], Path], sources: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    source = artifacts["always", "onnx"] if kind == "artifact" else sources["always"]
    out = tmp_path / "star.png"
    ran = invoke("run", source, *RUN, "-o", out)
    assert ran.code == 0, ran
    assert ran.document["withheld"] == [str(out)]
    assert f"safety checker blackened {out}" in ran.stderr and "--no-safety-checker" in ran.stderr
    assert not np.asarray(Image.open(out)).any()
    shown_ = tmp_path / "shown.png"
    ran = invoke("run", source, *RUN, "-o", shown_, "--no-safety-checker")
    assert ran.code == 0 and ran.document["withheld"] == [] and "blackened" not in ran.stderr, ran
    assert np.asarray(Image.open(shown_)).std() > 1


def test_some_of_several_pictures(
    artifacts: dict[tuple[str, str], Path], sources: dict[str, Path], tmp_path: Path
) -> None:
    flags = []
    for kind, source in (("artifact", artifacts["some", "onnx"]), ("checkpoint", sources["some"])):
        ran = invoke("run", source, *RUN, "-o", tmp_path / f"{kind}.png", "--pictures", 3)
        assert ran.code == 0, ran
        paths = [tmp_path / f"{kind}-{number}.png" for number in (1, 2, 3)]
        black = [not np.asarray(Image.open(path)).any() for path in paths]
        assert ran.document["withheld"] == [str(p) for p, hidden in zip(paths, black, strict=True) if hidden]
        flags.append(black)
    assert flags[0] == flags[1] and set(flags[0]) == {True, False}


def test_it_is_asked_where_a_picture_is_the_start(
    artifacts: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    start = tmp_path / "start.png"
    Image.new("RGB", (64, 64), (200, 40, 40)).save(start)
    out = tmp_path / "again.png"
    ran = invoke("run", artifacts["always", "onnx"], *RUN, "-o", out, "--image", start)
    assert ran.code == 0, ran
    assert ran.document["withheld"] == [str(out)] and not np.asarray(Image.open(out)).any()


def test_convert_leaves_it_out_when_asked(sources: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = invoke(
        "convert",
        sources["always"],
        "--to",
        "onnx",
        "-o",
        out,
        "--no-safety-checker",
        "--no-verify",
        "--json",
    )
    assert ran.code == 0, ran
    manifest = Artifact.open(out).manifest
    assert "safety_checker" not in {record.name for record in manifest.components}
    assert not (out / "safety_checker").exists()
    assert any("safety checker is left out, as asked" in note for note in manifest.source.notes), (
        manifest.source.notes
    )
    assert load(out).safety_checker is None


def test_the_plan_tells_what_the_choice_of_components_means(sources: dict[str, Path], tmp_path: Path) -> None:
    def planned(components: list[str] | None, **more: Any) -> tuple[list[str], list[str]]:
        plan = make_plan(str(sources["always"]), "onnx", tmp_path / "out", {}, components=components, **more)
        names = [part.name for part in plan.components]
        return names, [note for note in plan.notes if "safety checker" in note]

    names, (note,) = planned(None)
    assert names[-1] == "safety_checker" and "other clients do not ask it" in note
    names, (note,) = planned(["unet", "vae_decoder"])
    assert names == ["unet", "vae_decoder"] and "left out, as asked" in note
    assert planned(["unet"]) == (["unet"], [])  # nothing that makes a picture
    names, (note,) = planned(["safety_checker"])
    assert names == ["safety_checker"] and "is converted" in note


def renamed_class(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "SomeOtherChecker"]
    (folder / "model_index.json").write_text(json.dumps(index))


LACKING = {
    "is named in model_index.json and not there": lambda f: shutil.rmtree(f / "safety_checker"),
    "has no feature_extractor": lambda f: shutil.rmtree(f / "feature_extractor"),
    "is a SomeOtherChecker": renamed_class,
}


@pytest.mark.parametrize("why", LACKING)
def test_one_that_cannot_be_run_is_left_out_with_the_reason(
    sources: dict[str, Path], tmp_path: Path, why: str
) -> None:
    folder = shutil.copytree(sources["never"], tmp_path / "sd")
    LACKING[why](folder)
    plan = make_plan(str(folder), "onnx", tmp_path / "out", {})
    (note,) = [note for note in plan.notes if "safety checker" in note]
    assert why in note and "left out" in note
    assert "safety_checker" not in {part.name for part in plan.components}
    done = convert(plan, verify_settings={"steps": 1, "samples": 1, "prompts": [PROMPT]})
    assert done.verdict == "PASS", done.summary
    assert note in done.artifact.manifest.source.notes


def without_a_weight(path: Path) -> None:
    tensors = load_file(path)
    del tensors["concept_embeds"]
    save_file(tensors, path, {"format": "pt"})


def with_another_shape(path: Path) -> None:
    tensors = load_file(path)
    tensors["concept_embeds"] = tensors["concept_embeds"][:5].clone()
    save_file(tensors, path, {"format": "pt"})


def pickled(path: Path) -> None:
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (without_a_weight, ["safety_checker", "concept_embeds"]),
        (with_another_shape, ["safety_checker", "concept_embeds"]),
        (pickled, ["safety_checker", "only pickled weights", "--allow-pickle"]),
        (Path.unlink, ["safety_checker", "no safetensors weights"]),
    ],
)
def test_bad_weights_are_refused_as_those_of_any_component(
    sources: dict[str, Path], tmp_path: Path, damage: Any, parts: list[str]
) -> None:
    folder = shutil.copytree(sources["never"], tmp_path / "sd")
    damage(folder / "safety_checker" / "model.safetensors")
    ran = invoke("convert", folder, "--to", "onnx", "-o", tmp_path / "out", "--no-verify")
    ran.failed(3, *parts)
    assert not (tmp_path / "out").exists()


def test_a_pipeline_that_is_observed_says_it_too(tmp_path: Path) -> None:
    """Its artifact has no checker, and says so; the checkpoint's own is asked."""
    from tests.unwritten import make

    folder = give(make("instruct_pix2pix", tmp_path / "plain"), tmp_path / "checked", checker(ALWAYS))
    picture = tmp_path / "start.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    out = tmp_path / "a.png"
    ran = invoke("run", folder, "a", "-o", out, "--image", picture, "--steps", 1, "--json")
    assert ran.document["withheld"] == [str(out)] and "safety checker blackened" in ran.stderr
    plan = make_plan(str(folder), "onnx", tmp_path / "artifact")
    assert "safety_checker" not in [component.name for component in plan.components]
    (note,) = [note for note in plan.notes if "safety checker" in note]
    assert "StableDiffusionInstructPix2PixPipeline, which is converted without it" in note
