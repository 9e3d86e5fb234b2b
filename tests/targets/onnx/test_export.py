"""What the ONNX target writes computes what PyTorch computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from exporter import cache
from exporter.architectures import Component, Size, components_of
from exporter.checkpoints import resolve
from exporter.errors import CheckpointError, UnsupportedError
from exporter.graph import direct
from exporter.graph.direct import program
from exporter.progress import NullProgress
from exporter.targets.onnx import OnnxOptions, OnnxTarget
from tests.targets.onnx.conftest import NAMES, Exported, assert_close, export, reference

UNTRACED = [Size(1, 64, 64, 77), Size(3, 64, 192, 5), Size(5, 128, 64, 1)]
FLOAT32 = 2e-5
FLOAT16 = 4e-3  # four times the rounding of float16 activations over these depths


@pytest.mark.parametrize("size", UNTRACED, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_float32_at_untraced_shapes(exported: Exported, name: str, size: Size) -> None:
    inputs, expected = reference(exported.components[name], size, seed=4)
    with exported.open(name) as runner:
        assert_close(runner.run(inputs), expected, FLOAT32)


@pytest.mark.parametrize("size", UNTRACED[:2], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_float16_keeps_float32_at_the_border(exported_half: Exported, name: str, size: Size) -> None:
    inputs, expected = reference(exported_half.components[name], size, seed=4)
    with exported_half.open(name) as runner:
        assert runner.precision == "float16"
        assert_close(runner.run(inputs), expected, FLOAT16)


def test_float16_knows_every_timestep(exported_half: Exported) -> None:
    """float16 holds no fraction above 1024 and would merge neighbours above 2048."""
    component = exported_half.components["unet"]
    inputs, _ = reference(component, Size(1, 64, 64, 77), seed=1)
    module = component.reference_module()
    with exported_half.open("unet") as runner:
        for step in (0.0, 0.4, 500.5, 999.0, 2049.0):
            inputs["timestep"] = np.array(step, np.float32)
            with torch.no_grad():
                expected = module(**{name: torch.from_numpy(value) for name, value in inputs.items()})[
                    0
                ].numpy()
            assert_close(runner.run(inputs), {"out_sample": expected}, FLOAT16)


@pytest.mark.parametrize("attention", ["opset23", "decomposed"])
@pytest.mark.parametrize("name", ["text_encoder", "unet"])
def test_other_forms_of_attention(tiny: Path, tmp_path: Path, name: str, attention: str) -> None:
    result = export(tiny, tmp_path, (name,), attention=attention)
    model = onnx.load(tmp_path / name / "model.onnx", load_external_data=False)
    kinds = {node.op_type for node in model.graph.node}
    assert {node.domain for node in model.graph.node} == {""}
    assert ("Attention" in kinds) == (attention == "opset23")
    assert ("Softmax" in kinds) == (attention == "decomposed")
    assert result.records[name].details["attention"] == attention
    for size in UNTRACED:
        inputs, expected = reference(result.components[name], size, seed=4)
        with result.open(name) as runner:
            assert_close(runner.run(inputs), expected, FLOAT32)


def test_attention_is_fused_by_default(exported: Exported) -> None:
    for name in NAMES:
        model = onnx.load(exported.root / name / "model.onnx", load_external_data=False)
        kinds = [node.op_type for node in model.graph.node]
        assert "MultiHeadAttention" in kinds and "Softmax" not in kinds
        assert {entry.domain: entry.version for entry in model.opset_import} == {"": 20, "com.microsoft": 1}
        assert exported.records[name].details["opset"] == 20


@pytest.mark.parametrize("name", NAMES)
def test_a_baked_size_is_declared_and_enforced(tiny: Path, tmp_path: Path, name: str) -> None:
    result = export(tiny, tmp_path, (name,), static="1x64x128")
    rows = 2 if name == "unet" else 1
    size = Size(rows, 64, 128, 77)
    inputs, expected = reference(result.components[name], size, seed=2)
    with result.open(name) as runner:
        for spec in runner.inputs:
            assert all(isinstance(dim, int) for dim in spec.dims), spec
            assert tuple(spec.dims) == inputs[spec.name].shape
        for spec in runner.outputs:
            assert tuple(spec.dims) == expected[spec.name].shape
        assert_close(runner.run(inputs), expected, FLOAT32)
        other, _ = reference(result.components[name], replace(size, batch=3), seed=2)
        with pytest.raises(RuntimeError, match="declared"):
            runner.run(other)


@pytest.mark.parametrize(("name", "dtype"), [("text_encoder", "float32"), ("vae_decoder", "float16")])
def test_torchs_own_route_gives_the_same(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dtype: str
) -> None:
    """What the direct translation does not cover goes through torch's exporter, as exactly."""
    without = {name: entry for name, entry in program.TABLE.items() if name != "aten.linear.default"}
    monkeypatch.setattr(program, "TABLE", without)
    with cache.off():
        result = export(tiny, tmp_path, (name,), dtype=dtype)
    assert result.records[name].details["route"] == "torch"
    for size in UNTRACED:
        inputs, expected = reference(result.components[name], size, seed=4)
        with result.open(name) as runner:
            assert_close(runner.run(inputs), expected, FLOAT32 if dtype == "float32" else FLOAT16)
            assert runner.module_names()


def test_the_direct_route_covers_stable_diffusion(exported: Exported) -> None:
    assert {name: exported.records[name].details["route"] for name in NAMES} == dict.fromkeys(NAMES, "direct")


def test_inputs_and_outputs_have_the_clients_names(exported: Exported) -> None:
    declared = {
        name: ([s.name for s in record.inputs], [s.name for s in record.outputs])
        for name, record in exported.records.items()
    }
    assert declared == {
        "text_encoder": (["input_ids"], ["last_hidden_state", "pooler_output"]),
        "unet": (["sample", "timestep", "encoder_hidden_states"], ["out_sample"]),
        "vae_decoder": (["latent_sample"], ["sample"]),
        "vae_encoder": (["sample"], ["latent_parameters"]),
    }
    timestep = exported.records["unet"].inputs[1]
    assert timestep.dims == [] and timestep.dtype == "float32"


@pytest.mark.parametrize("name", NAMES)
def test_the_file_passes_onnx_own_checks(exported: Exported, name: str) -> None:
    onnx.checker.check_model(str(exported.root / name / "model.onnx"), full_check=False)


def test_fp16_checkpoint_to_float32(tiny_fp16: Path, tmp_path: Path) -> None:
    result = export(tiny_fp16, tmp_path, ("vae_encoder",))
    inputs, expected = reference(result.components["vae_encoder"], UNTRACED[1], seed=4)
    with result.open("vae_encoder") as runner:
        assert runner.precision == "float32"
        assert_close(runner.run(inputs), expected, FLOAT32)


def test_estimate_covers_what_is_written(exported: Exported) -> None:
    for name, component in exported.components.items():
        estimate = OnnxTarget().estimate(component, exported.options)
        size = sum(file.bytes for file in exported.records[name].files)
        assert size <= estimate.disk <= size + (8 << 20)
        assert estimate.memory >= 500 << 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "flash"}, "attention"),
        ({"attention": "opset23", "opset": 20}, "opset 20 does not go with attention opset23"),
        ({"opset": 17}, "opset 17 does not go with"),
        ({"dtype": "int3"}, "dtype"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_options_that_make_no_sense(options: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OnnxOptions(**options)


class WithAiry(nn.Module):
    """A text encoder whose last step no format knows."""

    class Airy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.airy_ai(x)

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.inner.odd_step = self.Airy()

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.inner(input_ids=input_ids, return_dict=False)
        return self.inner.odd_step(output[0]), output[1]


def text_encoder(source: Path) -> Component:
    return components_of(resolve(source))[0]


def test_an_operator_without_a_route_names_module_and_operator(tiny: Path, tmp_path: Path) -> None:
    component = replace(text_encoder(tiny), adapt=WithAiry)
    with pytest.raises(UnsupportedError, match=r"special_airy_ai.*'odd_step'"):
        OnnxTarget().export(component, OnnxOptions(), tmp_path, NullProgress())
    assert not (tmp_path / "text_encoder" / "model.onnx").exists()


def test_weights_that_do_not_fit_the_config(tiny: Path, tmp_path: Path) -> None:
    component = text_encoder(tiny)
    names = list(component.weights)
    short = dict(component.weights)
    del short[names[3]]
    object.__setattr__(component, "weights", short)
    with pytest.raises(CheckpointError, match="which the files do not hold"):
        OnnxTarget().export(component, OnnxOptions(), tmp_path, NullProgress())
    swapped = {
        name: component.checkpoint.stored("text_encoder")[name.removeprefix("inner.")] for name in names
    }
    swapped[names[0]] = next(t for t in swapped.values() if t.shape != swapped[names[0]].shape)
    object.__setattr__(component, "weights", swapped)
    with pytest.raises(CheckpointError, match="the config asks for"):
        OnnxTarget().export(component, OnnxOptions(), tmp_path, NullProgress())


def test_not_covered_is_no_error_of_the_user() -> None:
    from exporter.errors import ExporterError

    assert not issubclass(direct.NotCovered, ExporterError)
