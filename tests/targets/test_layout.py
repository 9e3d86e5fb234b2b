"""The diffusers folder around exported components."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from exporter.architectures import components_of
from exporter.checking import told
from exporter.checkpoints import resolve
from exporter.targets import get_target, target_names
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
def test_a_safety_checker_that_is_left_out_is_told(source: Path, target: str) -> None:
    """It has no feature extractor here."""
    assert ["has no feature_extractor" in note for note in notes(target, source)] == [True] * (
        target != "safetensors"
    )


@pytest.mark.parametrize("target", target_names())
def test_nothing_is_told_where_there_is_none(tiny: Path, target: str) -> None:
    assert notes(target, tiny) == []


@pytest.mark.parametrize("target", target_names())
def test_a_converted_one_is_told_where_some_clients_do_not_ask_it(
    tiny: Path, tmp_path: Path, target: str
) -> None:
    folder = give(tiny, tmp_path / "sd", checker())
    backend = get_target(target, require_backend=False)
    assert notes(target, folder) == ([] if backend.checked is None else [backend.checked])
    checkpoint = resolve(folder)
    every = components_of(checkpoint)
    files = write_diffusers_files(checkpoint, every, tmp_path / "out")
    names = {path.relative_to(tmp_path / "out").as_posix() for path in files}
    assert {"safety_checker/config.json", "feature_extractor/preprocessor_config.json"} <= names
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["safety_checker"] == [None, None] and index["requires_safety_checker"] is False


def notes(target: str, source: Path) -> list[str]:
    checkpoint = resolve(source)
    every = components_of(checkpoint)
    return told(checkpoint, every, every, get_target(target, require_backend=False))
