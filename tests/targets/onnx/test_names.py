"""`--naming transformers.js`: everything in `onnx/`, the dtype in the name; it runs and passes as ever."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from exporter import pipeline
from exporter.conversion import convert, make_plan
from exporter.errors import UsageError
from exporter.parity import verify
from exporter.targets import get_target
from exporter.targets.onnx.names import model_path

NAMES = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


def test_an_artifact_for_transformers_js(tiny: Path, tmp_path: Path) -> None:
    options = {"naming": "transformers.js", "dtype": "float16"}
    made = convert(make_plan(str(tiny), "onnx", tmp_path / "out", options, verify=False))
    root = made.artifact.root
    quick = {"steps": 2, "samples": 1, "prompts": ["a star"], "pipeline": False}
    report = verify(root, components=["vae_decoder"], **quick)
    assert report.verdict == "PASS", report.summary
    expected = {f"{name}_fp16.onnx{end}" for name in NAMES for end in ("", "_data")}
    assert {path.name for path in (root / "onnx").iterdir()} == expected
    assert not (root / "unet" / "model.onnx").exists() and (root / "unet" / "config.json").is_file()
    config = json.loads((root / "config.json").read_text())
    outside = config["transformers.js_config"]["use_external_data_format"]
    assert outside == {f"{name}_fp16.onnx": True for name in NAMES}
    (picture,) = pipeline.paint(pipeline.load(root), ["a star"], steps=1)
    assert picture.size == (64, 64)
    clients = get_target("onnx").clients("me/it", made.artifact.manifest)
    assert [client.title for client in clients] == ["exporter"]


@pytest.mark.parametrize(
    ("dtype", "weights", "name"),
    [
        ("float32", "int8", "unet_quantized.onnx"),
        ("float32", "int4", "unet_q4.onnx"),
        ("float16", "int4", "unet_q4f16.onnx"),
    ],
)
def test_names_of_integer_weights(dtype: str, weights: str, name: str) -> None:
    assert model_path("unet", "transformers.js", dtype, weights=weights).name == name


@pytest.mark.parametrize(
    ("naming", "dtype", "further", "path"),
    [
        ("diffusers", "float16", None, "unet/model.onnx"),
        ("diffusers", "float32", (1, 96, 64), "unet/model_1x96x64.onnx"),
        ("transformers.js", "float32", None, "onnx/unet.onnx"),
        ("transformers.js", "float16", (1, 96, 64), "onnx/unet_1x96x64_fp16.onnx"),
    ],
)
def test_names(naming, dtype: str, further: tuple[int, int, int] | None, path: str) -> None:
    assert model_path("unet", naming, dtype, further).as_posix() == path


def test_a_naming_that_does_not_exist(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--naming of target onnx"):
        make_plan(str(tiny), "onnx", tmp_path / "out", {"naming": "keras"})
