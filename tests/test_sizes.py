"""Several static sizes in one artifact: one set of weights, each size verified and found by `run`."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest

from exporter import pipeline
from exporter.artifact import Artifact
from exporter.conversion import Conversion, convert, make_plan
from exporter.errors import ArtifactError, UsageError
from exporter.inspection import is_artifact
from exporter.parity import rejudge, verify
from exporter.planning import parse_options
from exporter.recipes import from_manifest
from exporter.targets import get_target

SIZES = ["1x64x64", "1x96x64"]
QUICK = {"steps": 2, "samples": 1, "prompts": ["a red star"]}
ENTRIES = {
    "onnx": ("model.onnx", "model_1x96x64.onnx", "model.onnx_data"),
    "openvino": ("openvino_model.xml", "openvino_model_1x96x64.xml", "openvino_model.bin"),
}


@pytest.fixture(scope="module")
def onnx(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    pytest.importorskip("onnxruntime")
    plan = make_plan(str(tiny), "onnx", tmp_path_factory.mktemp("sizes-onnx") / "out", {"static": SIZES})
    assert any("each of the 2 sizes" in line for line in plan.verify)
    return convert(plan, verify_settings=QUICK)


@pytest.fixture(scope="module")
def openvino(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    pytest.importorskip("openvino")
    out = tmp_path_factory.mktemp("sizes-openvino") / "out"
    made = convert(make_plan(str(tiny), "openvino", out, {"static": SIZES}, verify=False))
    judged = verify(out, components=["unet"], precision_hint="f32", pipeline=False, **QUICK)
    return replace(made, verdict=judged.verdict, summary=judged.summary)


@pytest.fixture(params=["onnx", "openvino"])
def converted(request: pytest.FixtureRequest) -> Conversion:
    return request.getfixturevalue(request.param)


def test_both_sizes_pass_and_share_one_file_of_weights(converted: Conversion) -> None:
    assert converted.verdict == "PASS", converted.summary
    assert "1x96x64" in converted.summary
    manifest = converted.artifact.manifest
    unet = manifest.component("unet")
    assert {Path(file.path).name for file in unet.files} == set(ENTRIES[manifest.target])
    assert [size.static for size in unet.sizes] == [(1, 64, 64), (1, 96, 64)]
    assert unet.entry == unet.sizes[0].entry != unet.sizes[1].entry
    assert unet.sizes[1].inputs[0].dims == [2, 4, 12, 8]
    weights = next(f.bytes for f in unet.files if f.path.endswith(ENTRIES[manifest.target][2]))
    assert weights < 1.05 * 4 * unet.parameters, "the weights are held twice"
    text = manifest.component("text_encoder")  # its shapes are the same at both
    assert len({size.entry for size in text.sizes}) == 1 and len(text.files) == 2


def test_the_right_size_is_opened(converted: Conversion) -> None:
    root = converted.artifact.root
    assert pipeline.native_size(pipeline.load(root)) == (64, 64)
    tall = pipeline.load(root, height=96)
    (picture,) = pipeline.paint(tall, ["a red star"], steps=1, height=96)
    assert (picture.width, picture.height) == (64, 96)
    with pytest.raises(UsageError, match=r"64×64, 96×64 pixels.*not 64×96"):
        pipeline.load(root, height=64, width=96)


def test_a_further_size_is_judged_too(onnx: Conversion, tiny: Path, tmp_path: Path) -> None:
    """A fault that only the second size has makes the whole artifact fail."""
    import shutil

    from exporter.artifact import hash_file

    root = tmp_path / "faulty"
    shutil.copytree(onnx.artifact.root, root)
    path = root / "vae_decoder" / "model_1x96x64.onnx"
    path.write_bytes(path.read_bytes().replace(b"epsilon\x15\xbd7\x865", b"epsilon\x15\x00\x00\x80?"))
    artifact = Artifact.open(root)
    for component in artifact.manifest.components:
        component.files = [hash_file(root / file.path, root) for file in component.files]
    artifact.save()
    report = verify(root, components=["vae_decoder"], pipeline=False, bisect=False, **QUICK)
    assert [c.verdict for c in report.components] == ["PASS"]
    assert report.verdict == "FAIL" and report.summary.startswith("at 1x96x64: vae_decoder")
    recorded = Artifact.open(root).manifest.verification
    assert recorded is not None and recorded.components["vae_decoder"] == "FAIL"


def test_stored_reports_of_all_sizes_are_judged_again(onnx: Conversion) -> None:
    folder = onnx.artifact.root / "verification"
    assert rejudge(folder, k=4).verdict == "PASS"
    strict = rejudge(folder, k=1e-9)
    assert strict.sizes[0].verdict == "FAIL"


def test_constants_of_a_size_are_those_of_the_plain_export(openvino: Conversion, tiny: Path) -> None:
    """Every constant of the second file, read from the shared one, is one that some file had."""
    root = openvino.artifact.root / "unet"
    data = (root / "openvino_model.bin").read_bytes()
    text = (root / "openvino_model_1x96x64.xml").read_text(encoding="utf-8")
    places = [(int(o), int(n)) for o, n in re.findall(r'offset="(\d+)" size="(\d+)"', text)]
    assert places and max(offset + size for offset, size in places) <= len(data)
    assert len({hashlib.sha256(data[o : o + n]).digest() for o, n in places}) > 50


def test_the_second_size_without_the_shared_weights(openvino: Conversion, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "out"
    shutil.copytree(openvino.artifact.root, root)
    (root / "unet" / "openvino_model.bin").unlink()
    with pytest.raises(ArtifactError, match=r"openvino_model\.bin of component 'unet' is missing"):
        pipeline.load(root, height=96)


def test_the_recipe_of_an_artifact_names_all_sizes(onnx: Conversion) -> None:
    assert is_artifact(str(onnx.artifact.root))
    recipe = from_manifest(onnx.artifact.manifest)
    assert recipe.options["static"] == SIZES and "more_sizes" not in recipe.options
    again = parse_options(get_target("onnx"), recipe.options)
    assert again.sizes() == ((1, 64, 64), (1, 96, 64))


def test_formats_of_one_size_say_so() -> None:
    with pytest.raises(UsageError, match="--static was given more than once"):
        parse_options(get_target("torchscript"), {"static": SIZES})


def test_every_size_must_fit_the_autoencoder(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--static 1x64x60: height and width must be multiples of 8") as told:
        make_plan(str(tiny), "onnx", tmp_path / "out", {"static": ["1x64x64", "1x64x60"]})
    assert told.value.hint == "Try 1x64x64."
