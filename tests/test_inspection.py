"""Inspection of checkpoints, damaged checkpoints, unknown families and artifacts."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from exporter.artifact import (
    MANIFEST,
    Artifact,
    ComponentRecord,
    Manifest,
    SourceRecord,
    TensorRecord,
    VerificationRecord,
    hash_files,
    now,
)
from exporter.errors import ArtifactError, CheckpointError
from exporter.inspection import hash_state, inspect, trust


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """A folder with a manifest of two files; what is in them does not matter here."""
    root = tmp_path / "artifact"
    (root / "unet").mkdir(parents=True)
    (root / "unet/model.onnx").write_bytes(b"graph" * 100)
    (root / "model_index.json").write_text("{}")
    tensor = TensorRecord(name="sample", dtype="float32", dims=["batch", 4, 8, 8])
    record = ComponentRecord(
        name="unet",
        entry="unet/model.onnx",
        files=hash_files([root / "unet/model.onnx"], root),
        inputs=[tensor],
        outputs=[tensor],
        parameters=7,
        dtype="float32",
    )
    manifest = Manifest(
        target="onnx",
        source=SourceRecord(source="builtin:shapes", pipeline_class="StableDiffusionPipeline"),
        components=[record],
        shared_files=hash_files([root / "model_index.json"], root),
    )
    made = Artifact(root, manifest)
    made.save()
    return made


def judge(artifact: Artifact, verdict: str) -> None:
    artifact.manifest.verification = VerificationRecord.model_validate(
        {"verdict": verdict, "when": now(), "digest": artifact.manifest.digest()}
    )
    artifact.save()


def test_checkpoint(tiny: Path) -> None:
    from safetensors import safe_open

    found = inspect(str(tiny))
    assert found.kind == "checkpoint" and found.convertible and found.problems == []
    assert [c.name for c in found.components] == ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
    unet = found.components[1]
    with safe_open(tiny / "unet/diffusion_pytorch_model.safetensors", "pt") as stored:
        counted = sum(stored.get_tensor(name).numel() for name in stored.keys())  # noqa: SIM118
    assert unet.class_name == "UNet2DConditionModel"
    assert (unet.parameters, unet.dtypes, unet.bytes) == (counted, {"float32": counted}, 4 * counted)
    assert [t.name for t in unet.inputs] == ["sample", "timestep", "encoder_hidden_states"]
    assert unet.inputs[0].dims == ["batch", 4, "latent_height", "latent_width"]
    assert found.parts == {"scheduler": "DDIMScheduler", "tokenizer": "CLIPTokenizer"}
    assert found.bytes == sum(c.bytes or 0 for c in found.components)


def test_both_halves_of_the_vae_make_up_its_file(tiny: Path) -> None:
    halves = {c.name: c.parameters for c in inspect(str(tiny)).components}
    (tiny / "vae").stat()
    whole = inspect_folder_parameters(tiny, "vae")
    assert (halves["vae_decoder"] or 0) + (halves["vae_encoder"] or 0) == whole


def inspect_folder_parameters(root: Path, folder: str) -> int:
    from exporter.checkpoints import resolve

    return sum(tensor.numel for tensor in resolve(root).stored(folder).values())


def test_half_precision_is_seen(tiny_fp16: Path) -> None:
    for component in inspect(str(tiny_fp16)).components:
        assert list(component.dtypes) == ["float16"]
        assert component.bytes == 2 * (component.parameters or 0)


def test_unknown_family_is_listed_by_folder(copy: Path) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    index["_class_name"] = "DreamPipeline"
    (copy / "model_index.json").write_text(json.dumps(index))
    found = inspect(str(copy))
    assert found.convertible is False and found.problems == []
    assert sorted(c.name for c in found.components) == ["text_encoder", "unet", "vae"]
    assert all(c.parameters and c.bytes and c.class_name for c in found.components)
    assert found.components[0].inputs == []


def test_damage_is_listed_beside_what_is_whole(copy: Path) -> None:
    weights = copy / "unet/diffusion_pytorch_model.safetensors"
    os.truncate(weights, 1000)
    found = inspect(str(copy))
    broken = {c.name: c.problem for c in found.components if c.problem}
    assert list(broken) == ["unet"] and weights.name in (broken["unet"] or "")
    assert all(c.parameters for c in found.components if c.name != "unet")
    assert len(found.problems) == 1


def test_a_missing_folder_is_a_problem(copy: Path) -> None:
    shutil.rmtree(copy / "vae")
    found = inspect(str(copy))
    assert [c.name for c in found.components if c.problem] == ["vae"]


def test_a_config_that_is_not_json_is_a_problem(copy: Path) -> None:
    (copy / "unet/config.json").write_text("{")
    found = inspect(str(copy))
    assert any("unet" in problem and "config.json" in problem for problem in found.problems)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        inspect(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="model_index"):
        inspect(str(tmp_path))
    (tmp_path / MANIFEST).write_text("[]")
    with pytest.raises(ArtifactError, match="not a valid manifest"):
        inspect(str(tmp_path))


def test_artifact(artifact: Artifact) -> None:
    found = inspect(str(artifact.root))
    assert (found.kind, found.target, found.made_from) == ("artifact", "onnx", "builtin:shapes")
    assert found.components[0].entry == "unet/model.onnx" and found.components[0].bytes == 500
    assert found.state is not None and found.state.verdict is None
    assert "not been verified" in found.state.sentence
    assert found.problems == []


@pytest.mark.parametrize("verdict", ["PASS", "FAIL", "INCONCLUSIVE"])
def test_a_verdict_that_holds(artifact: Artifact, verdict: str) -> None:
    judge(artifact, verdict)
    state = trust(str(artifact.root))
    assert state is not None and state.verdict == verdict and verdict in state.sentence
    assert ("is verified" in state.sentence) == (verdict == "PASS")


def test_one_changed_byte_voids_the_verdict(artifact: Artifact) -> None:
    judge(artifact, "PASS")
    path = artifact.root / "unet/model.onnx"
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    state = hash_state(artifact)
    assert state.verdict is None and state.recorded == "PASS"
    assert state.changed == ["unet/model.onnx"]
    assert "unverified" in state.sentence and "unet/model.onnx" in state.sentence


def test_a_removed_file_voids_the_verdict_without_hashing(artifact: Artifact) -> None:
    judge(artifact, "PASS")
    (artifact.root / "model_index.json").unlink()
    found = inspect(str(artifact.root))
    assert found.state is not None and found.state.verdict is None
    assert len(found.problems) == 1 and "model_index.json" in found.problems[0]


def test_a_manifest_edited_after_the_verdict_voids_it(artifact: Artifact) -> None:
    judge(artifact, "PASS")
    path = artifact.root / "unet/model.onnx"
    path.write_bytes(b"other" * 100)
    artifact.manifest.components[0].files = hash_files([path], artifact.root)
    artifact.save()
    state = hash_state(Artifact.open(artifact.root))
    assert state.changed == [] and state.verdict is None
    assert "manifest changed" in state.sentence


def test_skipped_verification_is_said(artifact: Artifact) -> None:
    artifact.manifest.verification_skipped = True
    assert "--no-verify" in hash_state(artifact).sentence


def test_a_checkpoint_is_not_judged(tiny: Path) -> None:
    assert trust(str(tiny)) is None
    assert trust("builtin:shapes") is None
