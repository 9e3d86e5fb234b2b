"""What the OpenVINO target writes: right numbers, right declarations, the same bytes every time."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from exporter import cache
from exporter.architectures import Component, Size
from exporter.artifact import TensorRecord
from exporter.errors import UnsupportedError
from exporter.progress import NullProgress
from exporter.targets.openvino import OpenVinoOptions, OpenVinoTarget
from exporter.targets.openvino import export as export_module
from exporter.targets.openvino.timestep import TABLE
from tests.targets.openvino.conftest import NAMES, Exported, errors, export

UNTRACED = [
    Size(batch=1, height=64, width=64, sequence=77, factor=8),
    Size(batch=3, height=128, width=48, sequence=9, factor=8),
    Size(batch=5, height=32, width=96, sequence=31, factor=8),
]


@pytest.mark.parametrize("size", UNTRACED, ids=lambda s: f"{s.batch}x{s.height}x{s.width}+{s.sequence}")
@pytest.mark.parametrize("name", NAMES)
def test_equals_pytorch_at_shapes_the_export_did_not_trace(exported: Exported, name: str, size: Size) -> None:
    assert max(errors(exported, name, size)) <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_float16_weights_cost_no_more_than_their_rounding(half: Exported, name: str) -> None:
    size = Size(batch=2, height=64, width=64, sequence=77, factor=8)
    against_float32 = max(errors(half, name, size))
    assert 1e-6 < against_float32 <= 2e-3  # below: the weights were not rounded at all
    assert max(errors(half, name, size, round_matrices)) <= 1e-5


def round_matrices(module: torch.nn.Module) -> None:
    """Round to float16 what the target stores in float16: all but vectors."""
    for parameter in module.parameters():
        if not parameter.is_meta and sum(size != 1 for size in parameter.shape) > 1:
            parameter.data = parameter.data.half().float()


@pytest.mark.parametrize("name", NAMES)
def test_float16_halves_the_file(exported: Exported, half: Exported, name: str) -> None:
    def weights(artifact: Exported) -> int:
        return next(f.bytes for f in artifact.records[name].files if f.path.endswith(".bin"))

    # The tiny model has relatively many vectors, which stay float32.
    assert weights(half) < 0.56 * weights(exported)


def test_bfloat16_weights_are_stored_and_run(tiny: Path, tmp_path: Path) -> None:
    """Half the bytes, vectors untouched, and under `f32` the exact result of the rounded weights."""
    import openvino

    def rounded(module: torch.nn.Module) -> None:
        for parameter in module.parameters():
            if not parameter.is_meta and sum(size != 1 for size in parameter.shape) > 1:
                parameter.data = parameter.data.to(torch.bfloat16).float()

    artifact = export(tiny, tmp_path, ("text_encoder", "unet"), dtype="bfloat16")
    for name, record in artifact.records.items():
        size = Size(batch=2, height=64, width=128, sequence=77, factor=8)
        assert max(errors(artifact, name, size, rounded)) <= 1e-5
        assert min(errors(artifact, name, size)) >= 1e-4, "the weights are rounded"
        model = openvino.Core().read_model(artifact.root / record.entry)
        kinds = {
            (node.get_element_type().get_type_name(), sum(n != 1 for n in node.get_output_shape(0)) > 1)
            for node in model.get_ops()
            if node.get_type_name() == "Constant" and node.get_element_type().is_real()
            if node.get_friendly_name() != TABLE
        }
        assert kinds == {("bf16", True), ("f32", False)}
        assert record.details["weights"] == "bfloat16, vectors float32"


def test_a_graph_from_the_cache_gives_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    with cache.off():
        without = export(tiny, tmp_path / "without", ("text_encoder",))
    export(tiny, tmp_path / "first", ("text_encoder",))
    assert cache.SKELETONS.files()
    again = export(tiny, tmp_path / "again", ("text_encoder",))
    assert again.records["text_encoder"].files == without.records["text_encoder"].files


def test_frequencies_of_the_timestep_stay_float32(half: Exported) -> None:
    import openvino

    model = openvino.Core().read_model(half.root / half.records["unet"].entry)
    phase = np.arange(1001)[:, None] * np.exp(-np.log(10000) * np.arange(16) / 16)
    expected = np.concatenate([np.cos(phase), np.sin(phase)], axis=1)
    (table,) = [n for n in model.get_ops() if n.get_friendly_name() == "timestep_table"]
    assert table.get_element_type().get_type_name() == "f32"
    assert np.abs(table.get_data()[:1001] - expected).max() < 1e-4  # of a phase up to 1000, in float32
    assert np.isnan(table.get_data()[1001]).all(), "a timestep beyond the table is seen"


def test_static_shapes_are_baked(tiny: Path, tmp_path: Path) -> None:
    artifact = export(tiny, tmp_path, ("text_encoder", "unet", "vae_decoder"), static=(1, 64, 96))
    unet = artifact.records["unet"]
    assert [spec.dims for spec in unet.inputs] == [[2, 4, 8, 12], [1], [2, 77, 32]]
    assert [spec.dims for spec in artifact.records["text_encoder"].inputs] == [[1, 77]]
    size = Size(batch=1, height=64, width=96, sequence=77, factor=8)
    assert max(errors(artifact, "vae_decoder", size)) <= 1e-5
    twice = Size(batch=2, height=64, width=96, sequence=77, factor=8)
    assert max(errors(artifact, "unet", twice)) <= 1e-5
    with pytest.raises(RuntimeError, match="declared"):
        errors(artifact, "unet", Size(batch=1, height=64, width=96, sequence=77, factor=8))


def test_declares_what_clients_ask_for(exported: Exported) -> None:
    unet = exported.records["unet"]
    assert unet.inputs == [
        TensorRecord(name="sample", dtype="float32", dims=["batch", 4, "latent_height", "latent_width"]),
        TensorRecord(name="timestep", dtype="int64", dims=[1]),
        TensorRecord(name="encoder_hidden_states", dtype="float32", dims=["batch", "sequence", 32]),
    ]
    assert unet.outputs[0].name == "out_sample"
    assert exported.records["text_encoder"].inputs[0].dtype == "int64"
    assert [o.name for o in exported.records["text_encoder"].outputs] == [
        "last_hidden_state",
        "pooler_output",
    ]
    assert unet.details["precision_hint"] == "f32"


def test_float32_timestep_keeps_fractions(tiny: Path, tmp_path: Path) -> None:
    artifact = export(tiny, tmp_path, ("unet",), timestep="float32")
    component = artifact.components["unet"]
    tensors = component.example_inputs(component.native)
    tensors["timestep"] = torch.tensor(947.42)
    with torch.no_grad():
        truth = component.reference_module()(**tensors)[0].numpy()
    with artifact.open("unet") as runner:
        assert runner.inputs[1] == TensorRecord(name="timestep", dtype="float32", dims=[1])
        inputs = {name: value.numpy() for name, value in tensors.items()}
        got = runner.run({**inputs, "timestep": np.array([947.42], np.float32)})["out_sample"]
        whole = runner.run({**inputs, "timestep": np.array([947.0], np.float32)})["out_sample"]
    scale = np.linalg.norm(truth)
    assert np.linalg.norm(got - truth) <= 1e-5 * scale
    assert np.linalg.norm(whole - truth) > 1e-3 * scale


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_two_exports_are_the_same_bytes(
    exported: Exported, half: Exported, tiny: Path, tmp_path: Path, dtype: str
) -> None:
    first = exported if dtype == "float32" else half
    again = export(tiny, tmp_path / "elsewhere", ("text_encoder", "unet"), dtype=dtype)
    for name, record in again.records.items():
        assert record.files == first.records[name].files, f"{name} differs"


def test_files_name_no_machine(exported: Exported, tiny: Path) -> None:
    for record in exported.records.values():
        for file in record.files:
            content = (exported.root / file.path).read_bytes()
            for trace in (str(exported.root), str(tiny), str(Path.home()), ".onnx", "conversion_parameters"):
                assert trace.encode() not in content, f"{file.path} holds {trace}"


def test_leaves_nothing_but_its_files(exported: Exported) -> None:
    written = {p.relative_to(exported.root).as_posix() for p in exported.root.rglob("*") if p.is_file()}
    assert written == {f.path for record in exported.records.values() for f in record.files}


def test_weights_are_where_they_were_said_to_be(exported: Exported) -> None:
    """The estimate a plan shows is neither too small nor far too large."""
    target = OpenVinoTarget()
    for dtype in ("float32", "float16"):
        for component in exported.components.values():
            estimate = target.estimate(component, OpenVinoOptions(dtype=dtype))
            assert estimate.disk > component.parameters * (4 if dtype == "float32" else 2)
            assert estimate.memory > component.parameters * 4


def test_failure_leaves_no_temporary_graph(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise UnsupportedError("no route")

    monkeypatch.setattr(export_module, "convert", refuse)
    with pytest.raises(UnsupportedError):
        OpenVinoTarget().export(
            exported.components["text_encoder"], OpenVinoOptions(), tmp_path, NullProgress()
        )
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("unknown", [True, False], ids=["no-rule", "rule-fails"])
def test_a_whole_export_names_the_module_whose_operator_openvino_lacks(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unknown: bool
) -> None:
    """The graph is a real one; only one of its operators is one that OpenVINO has not, or refuses."""
    import onnx

    real = export_module.write_graph

    def written(*given: object) -> tuple[Path, dict[str, list[str]]]:
        source, modules = real(*given)  # type: ignore[arg-type]
        model = onnx.load(source, load_external_data=False)
        node = next(n for n in model.graph.node if n.name == "decoder.mid_block.resnets.0.conv1/Conv")
        if unknown:
            node.op_type, node.domain = "NoSuchOperator", "example.org"
            model.opset_import.append(onnx.helper.make_opsetid("example.org", 1))
        else:
            next(a for a in node.attribute if a.name == "strides").ints[:] = [1, 1, 1]
        onnx.save(model, source)
        return source, modules

    monkeypatch.setattr(export_module, "write_graph", written)
    component = exported.components["vae_decoder"]
    with pytest.raises(UnsupportedError) as caught:
        OpenVinoTarget().export(component, OpenVinoOptions(), tmp_path, NullProgress())
    operator = "NoSuchOperator" if unknown else "Conv"
    said = f"{operator} in module 'decoder.mid_block.resnets.0.conv1' of the vae_decoder (AutoencoderKL)"
    assert said in caught.value.message, caught.value.message
    assert not unknown or "No conversion rule found for operations: example.org." in caught.value.message


def test_unknown_operator_is_named(exported: Exported, tmp_path: Path) -> None:
    import onnx

    component: Component = exported.components["vae_decoder"]
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("NoSuchOperator", ["x"], ["y"], domain="example.org", name="somewhere/op")
    graph = onnx.helper.make_graph(
        [node], "g", [value], [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])]
    )
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("example.org", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets), tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError) as caught:
        export_module.convert(tmp_path / "m.onnx", component)
    assert "NoSuchOperator" in caught.value.message
    assert "vae_decoder" in caught.value.message
    assert "NoSuchOperator in module 'somewhere' of the vae_decoder" in caught.value.message
    assert not re.search(r"\.cpp:\d+", caught.value.message)


def test_whole_numbers_stay_whole(tmp_path: Path) -> None:
    """LTX-Video's transformer divides token numbers by the cells of a row: as floats it would not open."""
    import openvino

    from exporter.architectures import components_of
    from exporter.checkpoints import resolve
    from tests.families import make

    transformer = next(
        c for c in components_of(resolve(make("ltx", tmp_path / "ltx"))) if c.name == "transformer"
    )
    folder = tmp_path / "out"
    folder.mkdir()
    OpenVinoTarget().export(transformer, OpenVinoOptions(), folder, NullProgress())
    model = openvino.Core().read_model(folder / "transformer" / "openvino_model.xml")
    kinds = {port.get_any_name(): port.get_element_type().get_type_name() for port in model.inputs}
    assert kinds["height"] == kinds["width"] == "i64" and kinds["timestep"] == "f32"
