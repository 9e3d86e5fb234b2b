"""The files: weights once, aligned, named as diffusers names them, the same bytes every time."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import load_external_data_for_model

from exporter import graph
from exporter.architectures import components_of
from exporter.checkpoints import resolve
from exporter.graph.write import ALIGNMENT
from tests.targets.onnx.conftest import NAMES, Exported, export


def external(model: onnx.ModelProto) -> dict[str, dict[str, str]]:
    return {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
        if tensor.external_data
    }


@pytest.mark.parametrize("name", NAMES)
def test_each_weight_is_written_once_aligned_and_whole(exported: Exported, name: str) -> None:
    folder = exported.root / name
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    places = external(model)
    component = exported.components[name]
    stored = {tensor.name for tensor in component.weights.values()}
    assert set(places) == stored
    spans = sorted((int(p["offset"]), int(p["length"])) for p in places.values())
    assert {p["location"] for p in places.values()} == {"model.onnx_data"}
    assert all(offset % ALIGNMENT == 0 for offset, _ in spans)
    assert all(offset + size <= begin for (offset, size), (begin, _) in itertools.pairwise(spans))
    size = (folder / "model.onnx_data").stat().st_size
    assert spans[-1][0] + spans[-1][1] == size
    assert size - sum(length for _, length in spans) < ALIGNMENT * len(spans)
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "model.onnx_data", "config.json"}


def test_the_numbers_are_the_checkpoints(exported: Exported) -> None:
    folder = exported.root / "unet"
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    load_external_data_for_model(model, str(folder))
    checkpoint = {t.name: t.load().numpy() for t in exported.components["unet"].weights.values()}
    moved = 0
    for tensor in model.graph.initializer:
        if tensor.name not in checkpoint:
            continue
        ours, theirs = onnx.numpy_helper.to_array(tensor), checkpoint[tensor.name]
        if ours.shape != theirs.shape or not np.array_equal(ours, theirs):
            moved += 1
            theirs = theirs.T if theirs.ndim == 2 else theirs.reshape(ours.shape)
            np.testing.assert_array_equal(ours, theirs)
    assert moved > 20  # linear layers are transposed, scales of group norms reshaped


def test_no_layout_change_of_a_weight_is_left_to_the_runtime(exported: Exported) -> None:
    for name in NAMES:
        model = onnx.load(exported.root / name / "model.onnx", load_external_data=False)
        constants = {tensor.name for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type in ("Transpose", "Unsqueeze", "Reshape", "Cast", "Identity"):
                assert node.input[0] not in constants, node.name


def test_two_exports_have_the_same_bytes(exported: Exported, tmp_path: Path) -> None:
    again = export(exported.source, tmp_path, ("text_encoder", "vae_encoder"))
    for name, record in again.records.items():
        assert record.files == exported.records[name].files


def test_nothing_of_this_machine_is_in_the_graph(exported: Exported) -> None:
    for name in NAMES:
        data = (exported.root / name / "model.onnx").read_bytes()
        for trace in (b"site-packages", str(exported.source).encode(), b"/home/", b"torch.ops", b".py"):
            assert trace not in data


def test_nodes_are_named_after_their_modules(exported: Exported) -> None:
    model = onnx.load(exported.root / "unet" / "model.onnx", load_external_data=False)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q/MatMul" in names
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn2/MultiHeadAttention" in names
    outputs = [value for node in model.graph.node for value in node.output]
    assert len(set(outputs)) == len(outputs)


def test_the_graph_remembers_its_modules(exported: Exported) -> None:
    for name, component in exported.components.items():
        model = onnx.load(exported.root / name / "model.onnx", load_external_data=False)
        modules = json.loads({p.key: p.value for p in model.metadata_props}["exporter.modules"])
        real = {path.removeprefix("inner.") for path, _ in component.meta_module().named_modules()}
        assert set(modules) <= real
        leaves = {path.rsplit(".", 1)[0] for path in (t.name for t in component.weights.values())}
        assert leaves <= set(modules), leaves - set(modules)


def test_a_graph_can_be_written_twice_and_holds_no_weight(exported: Exported, tmp_path: Path) -> None:
    component = next(c for c in components_of(resolve(exported.source)) if c.name == "vae_encoder")
    built = graph.build(component)
    assert built.nbytes == 4 * component.parameters
    one, two = graph.write(built, tmp_path / "1"), graph.write(built, tmp_path / "2", name="other.onnx")
    assert [path.name for path in two] == ["other.onnx", "other.onnx_data"]
    assert one[1].read_bytes() == two[1].read_bytes()
    initializers = built.model.graph.initializers
    assert all(initializers[name].const_value is None for name in built.weights)


def test_config_and_index_are_there(exported: Exported) -> None:
    index = json.loads((exported.root / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    for name in NAMES:
        assert (
            "_class_name" in json.loads((exported.root / name / "config.json").read_text())
            or name == "text_encoder"
        )
    assert (exported.root / "scheduler" / "scheduler_config.json").is_file()
    assert (exported.root / "tokenizer" / "vocab.json").is_file()
