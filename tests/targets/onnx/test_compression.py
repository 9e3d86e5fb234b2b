"""Quantised ONNX files: what is in them, and that ONNX Runtime computes with it as written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from exporter.architectures import Size
from tests.targets.onnx.conftest import Exported, assert_close, export
from tests.targets.quantised_weights import with_the_files_weights

SIZE = Size(3, 64, 192, 5)
FLOAT32, FLOAT16 = 2e-5, 4e-3
NAMES = ("text_encoder", "unet")


@pytest.fixture(scope="module")
def int8(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(tiny, tmp_path_factory.mktemp("int8"), NAMES, weights="int8")


@pytest.fixture(scope="module")
def int4(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(tiny, tmp_path_factory.mktemp("int4"), NAMES, weights="int4", group_size=32)


def check(exported: Exported, name: str, limit: float, size: Size = SIZE) -> None:
    component = exported.components[name]
    with exported.open(name, precision_hint="default") as runner:
        module = with_the_files_weights(component, runner)
        inputs = component.example_inputs(size, 3)
        with torch.no_grad():
            outputs = module(**inputs)
        named = {spec.name: value.numpy() for spec, value in zip(component.outputs, outputs, strict=True)}
        assert_close(runner.run({n: t.numpy() for n, t in inputs.items()}), named, limit)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("name", NAMES)
def test_computes_with_the_weights_in_the_file(
    request: pytest.FixtureRequest, scheme: str, name: str
) -> None:
    """Also as a client opens it that asks for nothing: activations are not quantised."""
    check(request.getfixturevalue(scheme), name, FLOAT32)


@pytest.mark.parametrize(
    "options",
    [
        {"weights": "int8", "symmetric": True, "attention": "opset23"},
        {"weights": "int4", "symmetric": True, "group_size": 16, "attention": "decomposed"},
        {"weights": "int8", "dtype": "float16"},
        {"weights": "int4", "dtype": "float16"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_other_forms(tiny: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    limit = FLOAT16 if options.get("dtype") == "float16" else FLOAT32
    check(export(tiny, tmp_path, ("unet",), **options), "unet", limit)


def test_static_shapes(tiny: Path, tmp_path: Path) -> None:
    exported = export(tiny, tmp_path, ("unet",), weights="int4", static=(1, 64, 64))
    check(exported, "unet", FLOAT32, Size(2, 64, 64, 77))


def test_the_manifest_says_what_is_in_the_file(int4: Exported) -> None:
    said = int4.records["unet"].details["compression"]
    assert said["scheme"] == "int4_asym" and said["group_size"] == 32 and said["rest"] == "float32"
    model = onnx.load(int4.root / "unet/model.onnx", load_external_data=False)
    sizes: dict[str, list[int]] = {}
    for tensor in model.graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        if not where:
            continue
        four = (
            tensor.name.endswith((".codes", ".zeros"))
            and "int4" in said["weights"][tensor.name.rpartition(".")[0]]
        )
        kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
        sizes.setdefault("uint4" if four else kind, []).append(int(where["length"]))
    found = {kind: {"tensors": len(each), "bytes": sum(each)} for kind, each in sizes.items()}
    assert found.pop("float") == said["stored"].pop("float32")
    assert found == said["stored"]
    assert set(said["counts"]) == {"int8_asym", "int4_asym_group32"}
    assert sum(said["counts"].values()) == len(said["weights"])


def test_every_matrix_kernel_and_table_is_quantised(int8: Exported) -> None:
    for name in NAMES:
        component = int8.components[name]
        said = int8.records[name].details["compression"]["weights"]
        large = {t.name for t in component.weights.values() if len(t.shape) >= 2}
        left = large - set(said)
        assert left <= {"text_model.embeddings.position_embedding.weight"}
        files = sum(file.bytes for file in int8.records[name].files if file.path.endswith("_data"))
        assert files < 0.45 * component.parameters * 4  # tiny: many biases and scales; a real one is at 0.26


def test_two_exports_are_equal_to_the_byte(int4: Exported, tiny: Path, tmp_path: Path) -> None:
    again = export(tiny, tmp_path, ("unet",), weights="int4", group_size=32)
    assert [f.sha256 for f in again.records["unet"].files] == [f.sha256 for f in int4.records["unet"].files]
