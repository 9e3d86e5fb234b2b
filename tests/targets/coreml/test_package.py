"""Packages of strangers: what is damaged, or reads what it should not, is refused in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.errors import ArtifactError
from exporter.targets.coreml import load
from exporter.targets.coreml.interpreter.blob import BlobFile
from exporter.targets.coreml.lint import lint
from exporter.targets.coreml.package import open_package
from tests.targets.coreml.conftest import Exported

SPEC = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


@pytest.fixture
def package(half: Exported, tmp_path: Path) -> Path:
    """A copy of the text encoder's package, to be damaged."""
    source = half.package("text_encoder")
    return Path(shutil.copytree(source, tmp_path / source.name))


def edit(package: Path, change: Callable[[Any], None]) -> None:
    """Change the specification."""
    spec = open_package(package).spec
    change(spec)
    (package / SPEC).write_bytes(spec.SerializeToString())


def operations(spec: Any) -> Any:
    function = spec.mlProgram.functions["main"]
    return function.block_specializations[function.opset].operations


def blobs(spec: Any) -> list[Any]:
    """Every constant that lies in the weight file."""
    return [
        op.attributes["val"].blobFileValue
        for op in operations(spec)
        if op.type == "const" and op.attributes["val"].WhichOneof("value") == "blobFileValue"
    ]


def first_of(spec: Any, kind: str) -> Any:
    return next(op for op in operations(spec) if op.type == kind)


def test_the_copy_is_fine(package: Path) -> None:
    assert load(package).inputs[0].name == "input_ids"
    assert lint(open_package(package), "text_encoder") == []


def test_missing_pieces(package: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="missing"):
        load(tmp_path / "nosuch.mlpackage")
    with pytest.raises(ArtifactError, match="compiled"):
        load(tmp_path / "x.mlmodelc")
    (package / WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match=r"weight\.bin is missing"):
        load(package)
    (package / SPEC).unlink()
    with pytest.raises(ArtifactError, match="truncated"):
        load(package)
    (package / "Manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="Manifest"):
        load(package)


def test_cut_specification(package: Path) -> None:
    data = (package / SPEC).read_bytes()
    (package / SPEC).write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match=r"cut short|not an ML program|no readable|nothing computes"):
        load(package)


def test_cut_weights(package: Path) -> None:
    size = (package / WEIGHTS).stat().st_size
    os.truncate(package / WEIGHTS, size - 64)
    with pytest.raises(ArtifactError, match=r"said to (end|lie) at byte"):
        load(package)
    os.truncate(package / WEIGHTS, 10)
    with pytest.raises(ArtifactError, match="cut short"):
        load(package)


@pytest.mark.parametrize("offset", [1 << 40, 2**63 - 1, 0, 64 + 32])
def test_a_weight_outside_its_file(package: Path, offset: int) -> None:
    edit(package, lambda spec: setattr(blobs(spec)[0], "offset", offset))
    with pytest.raises(ArtifactError, match=r"said to lie at byte|no tensor at byte"):
        load(package)


@pytest.mark.parametrize(
    "name",
    [
        "@model_path/../../../../weights/weight.bin", "/etc/passwd", "@model_path//etc/passwd",
        "weights/weight.bin", "@model_path/", "@model_path/..\\x", "",
    ],
)  # fmt: skip
def test_a_weight_path_that_leaves_the_package(package: Path, name: str) -> None:
    edit(package, lambda spec: setattr(blobs(spec)[0], "fileName", name))
    with pytest.raises(ArtifactError, match="outside the package"):
        load(package)


def test_a_link_out_of_the_package(package: Path, tmp_path: Path) -> None:
    shutil.move(package / WEIGHTS, tmp_path / "elsewhere.bin")
    (package / WEIGHTS).symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(ArtifactError, match="outside the package"):
        load(package)


def test_a_manifest_that_points_outside(package: Path) -> None:
    path = package / "Manifest.json"
    manifest = json.loads(path.read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = "../../x.mlmodel"
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="outside the package"):
        load(package)


@pytest.mark.parametrize("version", [1, 5, 11, 99])
def test_versions_that_are_not_known(package: Path, version: int) -> None:
    edit(package, lambda spec: setattr(spec, "specificationVersion", version))
    with pytest.raises(ArtifactError, match=f"specification version {version}"):
        load(package)


def test_a_model_that_is_no_program(package: Path) -> None:
    edit(package, lambda spec: spec.neuralNetwork.SetInParent())
    with pytest.raises(ArtifactError, match="not an ML program"):
        load(package)


def test_an_unknown_operation_is_named_with_its_place(package: Path) -> None:
    edit(package, lambda spec: setattr(first_of(spec, "softmax"), "type", "hardmax"))
    with pytest.raises(ArtifactError, match=r"operation hardmax '.*' \(number \d+\) is unknown"):
        load(package)


def test_an_unknown_mode_or_parameter_is_named(package: Path) -> None:
    def change(spec: Any) -> None:
        op = first_of(spec, "layer_norm")
        op.inputs["gama"].CopyFrom(op.inputs["gamma"])
        del op.inputs["gamma"]

    edit(package, change)
    with pytest.raises(ArtifactError, match=r"layer_norm .*gama"):
        load(package).predict({"input_ids": np.zeros((1, 77), np.float32)})


def test_a_declared_shape_that_is_not_computed(package: Path) -> None:
    def change(spec: Any) -> None:
        first_of(spec, "softmax").outputs[0].type.tensorType.dimensions[0].constant.size = 7

    edit(package, change)
    with pytest.raises(ArtifactError, match=r"softmax .* is declared \[7, .*, gives \[1"):
        load(package).predict({"input_ids": np.zeros((1, 77), np.float32)})


def test_a_declared_type_that_is_not_computed(package: Path) -> None:
    edit(package, lambda spec: setattr(first_of(spec, "softmax").outputs[0].type.tensorType, "dataType", 23))
    with pytest.raises(ArtifactError, match="declared int32, gives float"):
        load(package).predict({"input_ids": np.zeros((1, 77), np.float32)})


def test_a_weight_of_another_type(package: Path) -> None:
    edit(package, lambda spec: setattr(blobs(spec)[0], "offset", blobs(spec)[1].offset))
    with pytest.raises(ArtifactError, match=r"bytes in|is .* in weight"):
        load(package)


def test_a_blob_file_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / "weight.bin"
    path.write_bytes(struct.pack("<II", 1, 3) + bytes(120))
    with pytest.raises(ArtifactError, match="version 3"):
        BlobFile(path)


def test_inputs_are_checked(package: Path) -> None:
    model = load(package)
    with pytest.raises(ValueError, match="declared float32"):
        model.predict({"input_ids": np.zeros((1, 77), np.int64)})
    with pytest.raises(ValueError, match=r"declared \[1, 77\]"):
        model.predict({"input_ids": np.zeros((1, 76), np.float32)})
    with pytest.raises(ValueError, match="missing"):
        model.predict({})


def test_an_unknown_function(package: Path) -> None:
    with pytest.raises(ArtifactError, match="no function 'other'"):
        load(package, function="other")


def test_a_note_cannot_hide_a_wrong_constant(package: Path) -> None:
    """Scalars before rounding are used only where they round to what the program holds."""
    model = load(package, mode="unrounded")
    held = {n: v for n, v in model.program.constants.items() if n in open_package(package).scalars}
    assert any(str(v.dtype) == "torch.float32" for v in held.values())
    edit(package, lambda spec: spec.description.metadata.userDefined.update(
        {"exporter.scalars": json.dumps(dict.fromkeys(held, 0.5))}
    ))  # fmt: skip
    again = load(package, mode="unrounded").program.constants
    assert all(again[n].dtype == load(package).program.constants[n].dtype for n in held)


FAULTS: dict[str, tuple[Callable[[Any], None], str]] = {
    "input renamed": (lambda d: setattr(d.input[0], "name", "ids"), "no input 'input_ids'"),
    "output renamed": (lambda d: setattr(d.output[0], "name", "hidden"), "no output 'last_hidden_state'"),
    "input int32": (lambda d: setattr(d.input[0].type.multiArrayType, "dataType", 131104), "is int32"),
    "output float16": (lambda d: setattr(d.output[0].type.multiArrayType, "dataType", 65552), "read float32"),
    "two rows": (lambda d: d.input[0].type.multiArrayType.shape.__setitem__(0, 2), r"is \[2, 77\]"),
    "extra output": (lambda d: d.output.add(name="more"), "'more', which they do not know"),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_what_apple_would_refuse_is_found(package: Path, fault: str) -> None:
    change, said = FAULTS[fault]
    edit(package, lambda spec: change(spec.description))
    import re

    faults = lint(open_package(package), "text_encoder")
    assert any(re.search(said, text) for text in faults), faults


def test_file_name_and_single_output_rules(half: Exported, tmp_path: Path) -> None:
    renamed = Path(shutil.copytree(half.package("unet"), tmp_path / "unet.mlpackage"))
    assert any("is not Stable_Diffusion_version" in f for f in lint(open_package(renamed), "unet"))
    edit(renamed, lambda spec: spec.description.output.add(name="more"))
    assert any("2 outputs" in f for f in lint(open_package(renamed), "unet"))


def test_every_rule_names_its_source() -> None:
    from exporter.targets.coreml.lint import RULES

    assert len(RULES) >= 8
    for rule in RULES:
        assert rule.__doc__ and any(word in rule.__doc__ for word in (".py", "Swift", "coreml_model"))
