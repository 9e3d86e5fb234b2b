"""The diffusers folder around exported components."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from exporter.architectures import components_of
from exporter.checkpoints import resolve
from exporter.planning import make_plan
from exporter.targets import target_names
from exporter.targets.layout import write_diffusers_files
from tests.checkers import checker, give


@pytest.fixture
def source(tiny: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint as a library leaves it: local paths in configs, a safety checker, links."""
    repository = tmp_path / "models--somebody--tiny"  # the Hub's cache keeps files as links to blobs
    folder = repository / "snapshots" / ("0" * 40)
    shutil.copytree(tiny, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {
        "_name_or_path": "/home/somebody/model",
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "requires_safety_checker": True,
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "config.json").write_text("{}")
    for name in ("unet/config.json", "tokenizer/tokenizer_config.json"):
        config = json.loads((folder / name).read_text())
        key = "_name_or_path" if "unet" in name else "name_or_path"
        (folder / name).write_text(json.dumps(config | {key: "/home/somebody/model"}))
    vocabulary = folder / "tokenizer" / "vocab.json"
    blob = repository / "blobs" / "vocabulary"
    blob.parent.mkdir()
    vocabulary.rename(blob)
    vocabulary.symlink_to(blob)
    return folder


def test_layout(source: Path, tmp_path: Path) -> None:
    checkpoint = resolve(source)
    out = tmp_path / "out"
    files = write_diffusers_files(checkpoint, components_of(checkpoint), out)
    assert sorted(files) == sorted(p for p in out.rglob("*") if p.is_file())
    names = {p.relative_to(out).as_posix() for p in files}
    for component in ("text_encoder", "unet", "vae_decoder", "vae_encoder"):
        assert f"{component}/config.json" in names
    assert {"scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"} <= names
    assert not any(name.startswith(("safety_checker", "vae/")) for name in names)
    for path in files:
        assert not path.is_symlink()
        assert "/home/somebody" not in path.read_text(encoding="utf-8")


def test_index_asks_only_for_what_is_there(source: Path, tmp_path: Path) -> None:
    checkpoint = resolve(source)
    write_diffusers_files(checkpoint, components_of(checkpoint), tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["safety_checker"] == [None, None]
    assert index["requires_safety_checker"] is False
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    assert index["tokenizer"] == ["transformers", "CLIPTokenizer"]


def test_a_part_that_was_left_out_is_null(source: Path, tmp_path: Path) -> None:
    checkpoint = resolve(source)
    only = [c for c in components_of(checkpoint) if c.name == "text_encoder"]
    write_diffusers_files(checkpoint, only, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
    assert index["unet"] == index["vae"] == [None, None]
    assert not (tmp_path / "out" / "unet").exists()


@pytest.mark.parametrize("target", target_names())
def test_a_safety_checker_that_cannot_be_converted_is_told(source: Path, target: str) -> None:
    expected = ["has no feature_extractor, which shows it the pictures"] * (target != "safetensors")
    assert all(reason in " ".join(said(target, source)) for reason in expected)
    assert len(said(target, source)) == len(expected)


@pytest.mark.parametrize("target", target_names())
def test_one_that_is_converted_is_told_where_not_all_clients_ask_it(
    tiny: Path, tmp_path: Path, target: str
) -> None:
    (told,) = said(target, give(tiny, tmp_path / "checked", checker())) or [""]
    wanted = {"safetensors": "", "coreml": "is left out, because this version does not"}
    assert wanted.get(target, "other clients do not ask it and show every picture") in told
    assert bool(told) == (target != "safetensors")


@pytest.mark.parametrize("target", target_names())
def test_nothing_is_told_where_there_is_none(tiny: Path, target: str) -> None:
    assert not said(target, tiny)


def said(target: str, source: Path) -> list[str]:
    """What is told of the checker before anything is converted."""
    plan = make_plan(str(source), target, verify=False)
    assert not [note for note in plan.notes if "safety checker" in note.lower() and note[-1] == "."]
    return [note for note in plan.notes if "safety checker" in note.lower()]
