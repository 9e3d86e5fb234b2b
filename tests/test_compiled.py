"""Compiled artifacts: used where they fit, passed over with a sentence where they do not."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from exporter import compiled, pipeline
from exporter.artifact import Artifact
from exporter.conversion import convert, make_plan
from exporter.errors import ArtifactError, UnsupportedError
from exporter.publish import published_files
from tests.cli.runner import invoke


def made(source: str, folder: Path, target: str) -> Path:
    artifact = convert(make_plan(source, target, folder / "out", verify=False)).artifact
    compiled.compile_artifact(artifact.root)
    return artifact.root


@pytest.fixture(scope="module")
def openvino(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("openvino")
    return made(str(tiny), tmp_path_factory.mktemp("compiled-openvino"), "openvino")


@pytest.fixture(scope="module")
def onnx(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    return made(str(tiny), tmp_path_factory.mktemp("compiled-onnx"), "onnx")


@pytest.fixture(params=["openvino", "onnx"])
def root(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def note_of(root: Path) -> Path:
    (found,) = root.glob("compiled/*/compiled.json")
    return found


def test_what_is_recorded(root: Path) -> None:
    note = json.loads(note_of(root).read_text())
    manifest = Artifact.open(root).manifest
    assert note["digest"] == manifest.digest()
    assert {part["component"] for part in note["parts"]} == {c.name for c in manifest.components}
    assert note["runtime"]["device"] == "CPU" and len(note["runtime"]) >= 3
    assert all(part["difference"] <= 1e-6 for part in note["parts"])
    assert not any("compiled" in name for name in published_files(Artifact.open(root)))


def test_the_same_picture_from_compiled_parts(root: Path) -> None:
    loaded = pipeline.load(root)
    assert set(loaded.exporter_compiled) == {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
    assert loaded.exporter_notes == []
    (picture,) = pipeline.paint(loaded, ["a red star"], steps=2)
    shutil.move(root / "compiled", root / "aside")
    try:
        plain = pipeline.load(root)
        assert plain.exporter_compiled == [] and plain.exporter_notes == []
        (expected,) = pipeline.paint(plain, ["a red star"], steps=2)
    finally:
        shutil.move(root / "aside", root / "compiled")
    difference = np.abs(np.asarray(picture, np.int16) - np.asarray(expected, np.int16)).max()
    assert difference <= 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda note: note["runtime"].update(driver="1.2"), "compiled for driver 1.2, and here is none"),
        (lambda note: note["runtime"].update(device="NPU"), "compiled for device NPU, and here is CPU"),
        (lambda note: note.update(digest="0" * 64), "from other bytes than the artifact has now"),
        (lambda note: note.update(parts=[]), "is not among what was compiled"),
        (lambda note: note.update(kind="something else"), "compiled.json is damaged"),
    ],
)
def test_what_does_not_fit_is_passed_over_with_a_sentence(openvino: Path, change, told: str) -> None:
    path = note_of(openvino)
    before = path.read_text()
    try:
        note = json.loads(before)
        change(note)
        path.write_text(json.dumps(note))
        loaded = pipeline.load(openvino)
        assert loaded.exporter_compiled == []
        assert any(told in text for text in loaded.exporter_notes), loaded.exporter_notes
    finally:
        path.write_text(before)


def test_a_damaged_blob_is_not_run(openvino: Path) -> None:
    (blob,) = openvino.glob("compiled/*/unet/*/*.blob")
    before = blob.read_bytes()
    try:
        blob.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        loaded = pipeline.load(openvino)
        assert "unet" not in loaded.exporter_compiled and "vae_decoder" in loaded.exporter_compiled
        assert "openvino_model.blob of unet is not as it was written" in loaded.exporter_notes[0]
    finally:
        blob.write_bytes(before)


def test_a_blob_that_the_runtime_refuses_is_passed_over(openvino: Path, tmp_path: Path) -> None:
    """Whole by its hash, but no blob of this OpenVINO."""
    from exporter.artifact import hash_file

    root = tmp_path / "out"
    shutil.copytree(openvino, root)
    (blob,) = root.glob("compiled/*/unet/*/*.blob")
    blob.write_bytes(b"no blob" * 100)
    note = json.loads(note_of(root).read_text())
    for part in note["parts"]:
        part["files"] = [hash_file(root / file["path"], root).model_dump() for file in part["files"]]
    note_of(root).write_text(json.dumps(note))
    loaded = pipeline.load(root)
    assert "unet" not in loaded.exporter_compiled
    assert "cannot open the compiled" in loaded.exporter_notes[0]


def test_another_hint_is_another_compilation(openvino: Path) -> None:
    loaded = pipeline.load(openvino, precision_hint="default")
    assert loaded.exporter_compiled == [] and loaded.exporter_notes == []


def test_a_compilation_that_computes_something_else_is_not_kept(
    openvino: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A plugin that loses some weights."""
    from exporter.targets.openvino import OpenVinoTarget

    root = tmp_path / "out"
    shutil.copytree(openvino, root, ignore=shutil.ignore_patterns("compiled"))
    real = OpenVinoTarget.compile

    lossy = tmp_path / "lossy"
    shutil.copytree(root, lossy)
    weights = lossy / "vae_decoder" / "openvino_model.bin"
    data = bytearray(weights.read_bytes())
    xml = weights.with_suffix(".xml").read_text(encoding="utf-8")
    offset, size = max(re.findall(r'offset="(\d+)" size="(\d+)"', xml), key=lambda place: int(place[1]))
    data[int(offset) : int(offset) + int(size)] = bytes(int(size))
    weights.write_bytes(data)

    def wrong(self, root, component, options, folder):
        lost = component.name == "vae_decoder"
        return real(self, lossy if lost else root, component, options, folder)

    monkeypatch.setattr(OpenVinoTarget, "compile", wrong)
    with pytest.raises(ArtifactError, match="compiled vae_decoder computes something else"):
        compiled.compile_artifact(root)
    assert not list(root.glob("compiled/*"))


@pytest.mark.parametrize(("fixture", "device"), [("openvino", "NPU"), ("onnx", "cuda")])
def test_a_device_that_is_not_here(
    fixture: str, device: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    root = request.getfixturevalue(fixture)
    have = {"openvino": "it finds: CPU", "onnx": "it has: cpu"}[fixture]
    invoke("compile", root, "--device", device).failed(4, device, have)
    picture = tmp_path / "star.png"
    invoke("run", root, "a star", "-o", picture, "--device", device).failed(4, device, have)


def test_a_format_without_anything_to_compile(tiny: Path, tmp_path: Path) -> None:
    artifact = convert(
        make_plan(str(tiny), "safetensors", tmp_path / "out", verify=False, components=["vae_decoder"])
    ).artifact
    with pytest.raises(UnsupportedError, match="has nothing to compile"):
        compiled.compile_artifact(artifact.root)


def test_the_command_and_the_sentence_of_run(openvino: Path, tmp_path: Path) -> None:
    ran = invoke("compile", openvino, "--json")
    assert ran.code == 0 and {p["component"] for p in ran.document["parts"]} >= {"unet"}
    path = note_of(openvino)
    note = json.loads(path.read_text())
    note["runtime"]["openvino"] = "2020.1"
    path.write_text(json.dumps(note))
    ran = invoke("run", openvino, "a star", "-o", tmp_path / "star.png", "--steps", "1")
    assert ran.code == 0 and "not used: it was compiled for openvino 2020.1" in ran.stderr
