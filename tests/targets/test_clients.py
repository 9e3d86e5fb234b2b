"""The code of model cards names classes that exist, for every family."""

from __future__ import annotations

import ast
from importlib import import_module

import pytest

from exporter.architectures import FAMILIES
from exporter.artifact import Manifest, SourceRecord
from exporter.targets import get_target


@pytest.mark.parametrize("target", ["onnx", "openvino"])
@pytest.mark.parametrize("pipeline_class", FAMILIES)
def test_the_pipeline_of_optimum_exists(target: str, pipeline_class: str) -> None:
    source = SourceRecord(source="x", pipeline_class=pipeline_class)
    client = get_target(target).clients("org/name", Manifest(target=target, source=source))[0]
    tree = ast.parse(client.code)
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    module = str(imported[0].module)
    pytest.importorskip(module)
    assert hasattr(import_module(module), imported[0].names[0].name)
    assert ("image=" in client.code) == ("Img2Img" in pipeline_class or "Inpaint" in pipeline_class)
    assert ("mask_image=" in client.code) == ("Inpaint" in pipeline_class)
