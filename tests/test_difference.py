"""`diff`: what differs is said, what does not is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from exporter import conversion
from exporter.artifact import Artifact
from exporter.difference import compare
from exporter.errors import UsageError

pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def artifact(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("difference") / "tiny-onnx"
    plan = conversion.make_plan(str(tiny), "onnx", out, {}, components=["vae_encoder"], verify=False)
    return conversion.convert(plan).artifact.root


def areas(a: Path, b: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for entry in compare(str(a), str(b)).entries:
        found.setdefault(entry.area, set()).add(entry.what)
    return found


def test_a_copy_does_not_differ(artifact: Path, tmp_path: Path) -> None:
    assert compare(str(artifact), str(shutil.copytree(artifact, tmp_path / "copy"))).same


def test_what_was_changed_is_named_and_nothing_else(artifact: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(artifact, tmp_path / "other"))
    opened = Artifact.open(other)
    opened.manifest.options["dtype"] = "float16"
    opened.manifest.tools["torch"] = "1.0"
    record = opened.manifest.components[0]
    record.inputs[0].dims[0] = 1
    record.files[0].sha256 = "0" * 64
    opened.manifest.source.files[0].sha256 = "1" * 64
    opened.save()
    assert areas(artifact, other) == {
        "option": {"dtype"},
        "tool": {"torch"},
        "tensor": {"vae_encoder.inputs.sample"},
        "file": {record.files[0].path},
        "source": {opened.manifest.source.files[0].path},
    }


def test_against_its_source(artifact: Path, tiny: Path, tiny_fp16: Path) -> None:
    same = areas(artifact, tiny)
    assert same == {"component": {"text_encoder", "unet", "vae_decoder"}}, "only what was not converted"
    other = areas(tiny_fp16, artifact)
    assert "vae/diffusion_pytorch_model.safetensors" in other["source"]
    assert "vae_encoder.dtype" in other["component"]


def test_two_checkpoints_are_refused(tiny: Path) -> None:
    with pytest.raises(UsageError, match="both checkpoints"):
        compare(str(tiny), "builtin:shapes")
