"""Quantised OpenVINO files: what is in them, and that OpenVINO computes with it as written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch

from exporter.architectures import Size
from tests.targets.openvino.conftest import Exported, export
from tests.targets.quantised_weights import with_the_files_weights

SIZE = Size(3, 64, 192, 5)
NAMES = ("text_encoder", "unet")
FLOAT32, HALF = 2e-5, 2e-3
BITS = {"u8": 8, "i8": 8, "u4": 4, "i4": 4, "f32": 32, "f16": 16, "bf16": 16}


@pytest.fixture(scope="module")
def int8(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(tiny, tmp_path_factory.mktemp("int8"), NAMES, weights="int8")


@pytest.fixture(scope="module")
def int4(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(tiny, tmp_path_factory.mktemp("int4"), NAMES, weights="int4", group_size=32)


def check(exported: Exported, name: str, limit: float, size: Size = SIZE) -> None:
    component = exported.components[name]
    with exported.open(name) as runner:
        module = with_the_files_weights(component, runner)
        inputs = component.example_inputs(size, 3)
        with torch.no_grad():
            outputs = module(**inputs)
        given = {n: t.numpy() for n, t in inputs.items()}
        for spec in runner.inputs:
            given[spec.name] = given[spec.name].astype(spec.dtype)
            if spec.name == "timestep":
                given["timestep"] = given["timestep"].reshape(1)
        results = runner.run(given)
    for spec, value in zip(component.outputs, outputs, strict=True):
        truth = value.double().numpy()
        error = np.linalg.norm(results[spec.name] - truth) / np.linalg.norm(truth)
        assert error <= limit, f"{spec.name}: {error}"


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("name", NAMES)
def test_computes_with_the_weights_in_the_file(
    request: pytest.FixtureRequest, scheme: str, name: str
) -> None:
    check(request.getfixturevalue(scheme), name, FLOAT32)


@pytest.mark.parametrize(
    "options",
    [
        {"weights": "int8", "symmetric": True, "dtype": "float16"},
        {"weights": "int4", "symmetric": True, "dtype": "bfloat16"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_the_rest_in_another_dtype(tiny: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """Everything large is quantised, so that only small tables are rounded to the other dtype."""
    exported = export(tiny, tmp_path, ("unet",), **options)
    check(exported, "unet", HALF)
    stored = exported.records["unet"].details["compression"]["stored"]
    assert stored["i8"]["bytes"] > 4 * stored.get("f16", stored.get("bf16", {"bytes": 0}))["bytes"]


def test_static_shapes(tiny: Path, tmp_path: Path) -> None:
    exported = export(tiny, tmp_path, ("unet",), weights="int4", static=(1, 64, 64))
    check(exported, "unet", FLOAT32, Size(2, 64, 64, 77))


def test_the_manifest_says_what_is_in_the_file(int4: Exported) -> None:
    said = int4.records["unet"].details["compression"]
    assert said["scheme"] == "int4_asym" and said["group_size"] == 32 and said["rest"] == "float32"
    found: dict[str, dict[str, int]] = {}
    for node in openvino.Core().read_model(int4.root / "unet/openvino_model.xml").get_ops():
        kind = node.output(0).get_element_type().get_type_name() if node.get_output_size() else ""
        if node.get_type_name() == "Constant" and kind in BITS:
            row = found.setdefault(kind, {"tensors": 0, "bytes": 0})
            row["tensors"] += 1
            row["bytes"] += -(-int(np.prod(node.get_output_shape(0))) * BITS[kind] // 8)
    assert said["stored"] == found
    assert said["counts"].keys() == {"int8_asym", "int4_asym_group32"}
    assert sum(said["counts"].values()) == len(said["weights"])


def test_every_matrix_kernel_and_table_is_quantised(int8: Exported) -> None:
    for name in NAMES:
        component = int8.components[name]
        said = int8.records[name].details["compression"]["weights"]
        large = {t.name for t in component.weights.values() if len(t.shape) >= 2}
        assert large - set(said) <= {"text_model.embeddings.position_embedding.weight"}


def test_activations_are_left_alone_only_under_f32(int8: Exported) -> None:
    with int8.open("unet") as exact, int8.open("unet", precision_hint="default") as default:
        assert not exact.rounds_activations and default.rounds_activations


def test_two_exports_are_equal_to_the_byte(int4: Exported, tiny: Path, tmp_path: Path) -> None:
    again = export(tiny, tmp_path, ("unet",), weights="int4", group_size=32)
    assert [f.sha256 for f in again.records["unet"].files] == [f.sha256 for f in int4.records["unet"].files]
