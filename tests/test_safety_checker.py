"""The safety checker decides as the library's does, in artifacts too, and a fault in one is found."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import exporter
from exporter.architectures import components_of
from exporter.architectures.safety_checker import found, shown
from exporter.checkpoints import resolve
from exporter.conversion import convert, make_plan
from exporter.errors import CheckpointError
from exporter.pipeline import load, paint
from exporter.safety_checker import withheld_from
from tests.checkers import ALWAYS, NEVER, PIXELS, checker, give
from tests.cli.runner import invoke

SETTINGS = {"steps": 2, "samples": 1, "prompts": ["a red star"], "bisect": False}


@pytest.fixture(scope="module")
def always(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose every picture is withheld."""
    return give(tiny, tmp_path_factory.mktemp("checked") / "always", checker(ALWAYS))


@pytest.fixture(scope="module")
def onnx(always: Path) -> Path:
    done = convert(make_plan(str(always), "onnx", always.parent / "onnx"), verify_settings=SETTINGS)
    assert done.verdict == "PASS", done.summary
    return done.artifact.root


def scores(folder: Path, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    component = components_of(resolve(folder))[-1]
    assert component.name == "safety_checker"
    special, concepts = component.reference_module()(clip_input=values)
    return special, concepts


def test_it_decides_as_the_librarys(tiny: Path, tmp_path: Path) -> None:
    """Thresholds in the middle of what random pictures score, the special ones too."""
    torch.manual_seed(3)
    values = torch.randn(400, 3, PIXELS, PIXELS) * torch.linspace(0.1, 4, 400).view(-1, 1, 1, 1)
    flagged = []
    for number, (threshold, special) in enumerate(((0.29, 0.07), (0.33, 0.05), (0.26, 0.1))):
        made = checker(threshold, special)
        folder = give(tiny, tmp_path / str(number), made)
        pictures = np.ones((len(values), 2, 2, 3), np.float32)
        blackened, theirs = made(clip_input=values, images=pictures)
        ours = [found(*pair) for pair in zip(*(s.tolist() for s in scores(folder, values)), strict=True)]
        assert ours == theirs
        assert [not picture.any() for picture in blackened] == theirs
        flagged += theirs
    assert 0.05 < np.mean(flagged) < 0.95


@pytest.mark.parametrize(
    ("special", "concepts", "expected"),
    [
        ([-0.1] * 3, [0.0004] * 17, False),
        ([-0.1] * 3, [0.0006] * 17, True),
        ([0.0004] * 3, [-0.009] * 17, False),
        ([0.0006, -1, -1], [-0.009] * 17, True),
        ([0.0006, -1, -1], [-0.0099] * 17, False),
        ([1.0] * 3, [-0.02] * 17, False),
    ],
)
def test_what_is_found(special: list[float], concepts: list[float], expected: bool) -> None:
    assert found(special, concepts) is expected


def test_it_is_shown_what_the_pipeline_shows_it(always: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = load(str(always))
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(
        type(pipeline.safety_checker), "forward",
        lambda self, clip_input, images: (seen.append(clip_input), (images, [False] * len(images)))[1],
    )  # fmt: skip
    pictures = torch.rand(2, 3, 64, 48) * 2 - 1
    pipeline.run_safety_checker(pictures, torch.device("cpu"), torch.float32)
    assert torch.equal(seen[0], shown(resolve(always), pictures))


def test_an_artifact_withholds_what_the_checkpoint_withholds(always: Path, onnx: Path) -> None:
    index = json.loads((onnx / "model_index.json").read_text())
    assert index["safety_checker"] == [None, None]
    for source in (always, onnx):
        pipeline = exporter.load(source)
        result = pipeline("a", num_inference_steps=1, generator=torch.Generator().manual_seed(0))
        assert result.nsfw_content_detected == [True]
        assert not np.asarray(result.images[0]).any()
        assert not np.asarray(paint(pipeline, ["a"], steps=1)[0]).any()
        assert withheld_from(pipeline) == [0]


def test_without_it_every_picture_is_shown(always: Path, onnx: Path) -> None:
    theirs, ours = (
        np.asarray(paint(exporter.load(source, safety_checker=False), ["a"], steps=2)[0]).astype(int)
        for source in (always, onnx)
    )
    assert ours.any() and abs(ours - theirs).max() <= 1


def test_some_of_several_pictures(onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures one after another, and in a batch."""
    pipeline = exporter.load(onnx)
    numbers = itertools.count()

    def every_second(clip_input: torch.Tensor) -> list[torch.Tensor]:
        high = [0.5 if next(numbers) % 2 else -0.5 for _ in clip_input]
        return [torch.full((len(high), 3), -1.0), torch.tensor(high)[:, None].expand(-1, 17)]

    monkeypatch.setattr(pipeline.safety_checker, "call", lambda runner, clip_input: every_second(clip_input))
    for together in (1, 4):
        painted = paint(pipeline, ["a"] * 4, seed=[1, 2, 3, 4], steps=1, together=together)
        assert withheld_from(pipeline) == [1, 3]
        assert [bool(np.asarray(picture).any()) for picture in painted] == [True, False, True, False]


@pytest.mark.parametrize("made", [False, True], ids=["checkpoint", "artifact"])
def test_run_says_what_was_withheld(made: bool, always: Path, onnx: Path, tmp_path: Path) -> None:
    source, path = str(onnx if made else always), tmp_path / "a.png"
    command = ["run", source, "a", "-o", str(path), "--steps", "1", "--json"]
    shown_all = invoke(*command, "--no-safety-checker")
    assert json.loads(shown_all.stdout)["withheld"] == []
    assert "blackened" not in shown_all.stderr
    told = invoke(*command, "--pictures", "2")
    assert told.exit_code == 0
    assert json.loads(told.stdout)["withheld"] == [str(tmp_path / f"a-{n}.png") for n in (1, 2)]
    assert "safety checker blackened" in told.stderr and "--no-safety-checker" in told.stderr


def test_it_can_be_left_out(always: Path, tmp_path: Path) -> None:
    plan = make_plan(str(always), "onnx", tmp_path / "a", safety_checker=False)
    assert "safety_checker" not in [c.name for c in plan.components]
    assert [n for n in plan.notes if n.startswith("The safety checker is left out, as asked")]
    others = ["text_encoder", "unet", "vae_decoder"]
    named = make_plan(str(always), "onnx", tmp_path / "b", components=others)
    assert [n for n in named.notes if n.startswith("The safety checker is left out, as asked")]
    done = convert(plan, verify_settings=SETTINGS)
    assert done.verdict == "PASS", done.summary
    assert np.asarray(paint(exporter.load(done.artifact.root), ["a"], steps=1)[0]).any()


def test_core_ml_leaves_it_out_and_says_so(always: Path, tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    plan = make_plan(str(always), "coreml", tmp_path / "a")
    assert [c.name for c in plan.components] == ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
    assert [n for n in plan.notes if "does not make Apple's SafetyChecker package" in n]


def test_one_with_missing_weights_is_refused(tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = give(tiny, tmp_path / "a", checker(NEVER))
    weights = folder / "safety_checker" / "model.safetensors"
    kept = {n: v for n, v in load_file(weights).items() if n != "concept_embeds_weights"}
    save_file(kept, weights)
    with pytest.raises(CheckpointError, match="concept_embeds_weights"):
        convert(make_plan(str(folder), "onnx", tmp_path / "b"))
    assert not (tmp_path / "b").exists()
