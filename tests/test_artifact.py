"""The manifest describes every byte, and a changed byte voids the verdict."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.artifact import (
    Artifact,
    ComponentRecord,
    Manifest,
    SourceRecord,
    VerificationRecord,
    check_inside,
    hash_files,
)
from exporter.errors import ArtifactError
from exporter.hashing import sha256_of, sha256_of_all


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    (tmp_path / "unet").mkdir()
    weights = tmp_path / "unet/model.bin"
    weights.write_bytes(bytes(range(256)))
    manifest = Manifest(
        target="onnx",
        source=SourceRecord(source="here", pipeline_class="StableDiffusionPipeline"),
        components=[
            ComponentRecord(
                name="unet",
                entry="unet/model.bin",
                files=hash_files([weights], tmp_path),
                inputs=[],
                outputs=[],
                parameters=256,
                dtype="float32",
            )
        ],
    )
    manifest.verification = VerificationRecord(verdict="PASS", when="now", digest=manifest.digest())
    result = Artifact(tmp_path, manifest)
    result.save()
    return result


def test_round_trip(artifact: Artifact) -> None:
    again = Artifact.open(artifact.root)
    assert again.manifest == artifact.manifest
    assert again.verified(rehash=True) == "PASS"
    assert again.changed_files() == []


def test_one_changed_byte_makes_it_unverified(artifact: Artifact) -> None:
    path = artifact.root / "unet/model.bin"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    assert artifact.verified(rehash=True) is None
    assert artifact.changed_files() == ["unet/model.bin"]


def test_a_changed_size_is_seen_without_hashing(artifact: Artifact) -> None:
    (artifact.root / "unet/model.bin").write_bytes(b"short")
    assert artifact.verified() is None


@pytest.mark.parametrize(
    "name", ["diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.fp16.safetensors"]
)
def test_weights_added_beside_the_listed_ones_make_it_unverified(artifact: Artifact, name: str) -> None:
    """The libraries look for an index first: it would decide what they load, and no listed byte changed."""
    record = artifact.manifest.components[0]
    weights = (artifact.root / "unet/model.bin").rename(artifact.root / "unet/model.safetensors")
    record.files, record.entry = hash_files([weights], artifact.root), "unet/model.safetensors"
    artifact.manifest.verification = VerificationRecord(
        verdict="PASS", when="now", digest=artifact.manifest.digest()
    )
    (artifact.root / "unet/notes.txt").write_text("nobody loads this")
    assert artifact.verified() == artifact.verified(rehash=True) == "PASS"
    (artifact.root / "unet" / name).write_text("{}")
    assert artifact.changed_files() == artifact.added_files() == [f"unet/{name}"]
    assert artifact.verified() is None and artifact.verified(rehash=True) is None


def test_many_files_at_once_are_the_files_one_by_one(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.bin" for number in range(20)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * (number * 40_000))
    wanted = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert sha256_of_all(paths) == wanted == [sha256_of(path) for path in paths]
    assert sha256_of_all([]) == []
    paths[7].unlink()
    with pytest.raises(FileNotFoundError):
        sha256_of_all(paths)
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(InterruptedError, match=r"9\.bin was not read to its end"):
        sha256_of(paths[9], stopped)


def test_a_manifest_edited_to_other_hashes_is_unverified(artifact: Artifact) -> None:
    artifact.manifest.components[0].files[0].sha256 = "0" * 64
    assert artifact.verified() is None


@pytest.mark.parametrize("bad", ["../evil", "/etc/passwd", "unet/../../evil", "C:/x", "..\\evil", ""])
def test_paths_that_leave_the_folder_are_refused(artifact: Artifact, bad: str) -> None:
    data = json.loads((artifact.root / "exporter.json").read_text())
    data["components"][0]["files"][0]["path"] = bad
    (artifact.root / "exporter.json").write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match="outside the artifact"):
        Artifact.open(artifact.root)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "nonsense", '{"schema_version": 1, "surprise": 2}', "[" * 100_000]
)
def test_a_broken_manifest_is_one_clear_error(artifact: Artifact, text: str) -> None:
    (artifact.root / "exporter.json").write_text(text)
    with pytest.raises(ArtifactError):
        Artifact.open(artifact.root)


def test_a_newer_schema_says_so(artifact: Artifact) -> None:
    data = json.loads((artifact.root / "exporter.json").read_text())
    data["schema_version"] = 99
    (artifact.root / "exporter.json").write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match="newer exporter"):
        Artifact.open(artifact.root)


def test_no_folder_and_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no artifact folder"):
        Artifact.open(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="not made by exporter"):
        Artifact.open(tmp_path)


@given(st.text(max_size=40))
def test_check_inside_never_lets_a_path_escape(text: str) -> None:
    try:
        check_inside(text)
    except ArtifactError:
        return
    base = Path("/base/artifact")
    assert (base / text).is_relative_to(base) and ".." not in Path(text).parts


def test_digest_depends_on_every_file_and_not_on_order(artifact: Artifact) -> None:
    manifest = artifact.manifest.model_copy(deep=True)
    extra = manifest.components[0].files[0].model_copy(update={"path": "unet/b.bin"})
    manifest.shared_files = [extra]
    before = manifest.digest()
    assert before != artifact.manifest.digest()
    manifest.shared_files, manifest.components[0].files = (
        manifest.components[0].files,
        manifest.shared_files,
    )
    assert manifest.digest() == before
