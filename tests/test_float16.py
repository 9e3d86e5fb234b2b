"""What float16 cannot hold is kept out of it: measured on a run, recorded, and seen by the verifier."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from exporter import float16
from exporter.architectures import components_of
from exporter.checkpoints import resolve
from exporter.conversion import Conversion, convert, make_plan
from exporter.errors import ResourceError
from exporter.parity import Report, verify
from exporter.parity.activations import peak_of
from exporter.parity.cases import Inputs
from exporter.progress import NullProgress
from exporter.targets.openvino.export import scale_for

QUICK = {"steps": 2, "samples": 1, "prompts": ["a star"]}
SCALE = 30_000.0


@pytest.fixture(scope="module")
def loud(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with an autoencoder whose values float16 cannot hold; its weights it can.

    The first convolution is scaled; normalisations take it out again, the sums beside them keep it.
    """
    folder = tmp_path_factory.mktemp("loud") / "sd"
    shutil.copytree(tiny, folder)
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    for name in ("decoder.conv_in.weight", "decoder.conv_in.bias"):
        tensors[name] = tensors[name] * SCALE
        assert tensors[name].abs().max() < float16.FLOAT16_MAX / 2
    save_file(tensors, path)
    return folder


@pytest.fixture(scope="module")
def converted(loud: Path, tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    pytest.importorskip("onnxruntime")
    out = tmp_path_factory.mktemp("loud-onnx") / "out"
    plan = make_plan(str(loud), "onnx", out, {"dtype": "float16"}, components=["unet", "vae_decoder"])
    return convert(plan, verify_settings=QUICK)


def test_the_part_that_overflows_stays_float32_and_paints(converted: Conversion) -> None:
    assert converted.verdict == "PASS", converted.summary
    manifest = converted.artifact.manifest
    kinds = {record.name: record.dtype for record in manifest.components}
    assert kinds == {"unet": "float16", "vae_decoder": "float32"}
    details = manifest.component("vae_decoder").details
    assert details["peak_activation"] > float16.FLOAT16_MAX and details["peak_module"].startswith("decoder")
    assert "dtype float32" in details["float16"]
    assert any(note.startswith("vae_decoder: dtype float32, because") for note in manifest.source.notes)
    assert manifest.component("unet").details["peak_activation"] < float16.FLOAT16_MAX / float16.MARGIN
    report = Report.load(converted.artifact.root / "verification")
    assert report.pipeline is not None
    (run,) = [run for run in report.pipeline.runs if run.mode == "graph"]
    assert all(painting.psnr_db is not None and painting.psnr_db > 40 for painting in run.paintings)


def test_without_the_safety_the_verifier_says_fail(
    loud: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the runtime here computes float16 in float32 and gets away with it."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(float16, "FLOAT16_MAX", math.inf)
    plan = make_plan(
        str(loud), "onnx", tmp_path / "out", {"dtype": "float16"}, verify=False, components=["vae_decoder"]
    )
    made = convert(plan)
    assert made.artifact.manifest.component("vae_decoder").dtype == "float16"
    report = verify(made.artifact, pipeline=False, **QUICK)
    assert report.verdict == "FAIL"
    assert any("finite" in reason for reason in report.components[0].reasons)


@pytest.mark.parametrize(
    ("target", "options"),
    [("torchscript", {"dtype": "float16"}), ("pt2", {"dtype": "float16"}), ("onnx", {})],
)
def test_who_is_measured(loud: Path, tmp_path: Path, target: str, options: dict[str, str]) -> None:
    """TorchScript and .pt2 in float16 are, as ONNX; what computes in float32 is not."""
    plan = make_plan(str(loud), target, tmp_path / "out", options, components=["vae_decoder"])
    (safety,) = float16.decide(plan, QUICK, NullProgress()).values()
    assert safety.options.dtype == "float32"
    assert bool(safety.details) == bool(safety.note) == (target != "onnx")


def test_a_disk_that_is_too_small_for_what_stays_float32(loud: Path, tmp_path: Path) -> None:
    """It fits as float16, as planned, and does not as float32."""
    plan = make_plan(str(loud), "onnx", tmp_path / "out", {"dtype": "float16"}, components=["vae_decoder"])
    with pytest.raises(ResourceError, match="Not enough disk"):
        convert(replace(plan, free_disk=int(plan.disk * 1.2)), verify_settings=QUICK)
    assert not (tmp_path / "out").exists()


def test_openvino_is_told_by_how_much_to_scale(loud: Path, tiny: Path, tmp_path: Path) -> None:
    ov = pytest.importorskip("openvino")
    halves = ["vae_decoder", "vae_encoder"]
    plan = make_plan(str(loud), "openvino", tmp_path / "out", {"dtype": "float16"}, components=halves)
    chosen = float16.decide(plan, QUICK, NullProgress())
    place = ["runtime_options", "ACTIVATIONS_SCALE_FACTOR"]
    decoder, encoder = chosen["vae_decoder"], chosen["vae_encoder"]
    exported = {
        c.name: plan._target.export(c, chosen[c.name].options, tmp_path, NullProgress())
        for c in plan._components
    }
    scale = exported["vae_decoder"].details["activations_scale_factor"]
    assert decoder.options.dtype == "float16" and decoder.details["peak_activation"] > float16.FLOAT16_MAX
    assert scale >= 8 and decoder.details["peak_activation"] * float16.MARGIN / scale <= float16.FLOAT16_MAX
    assert decoder.note is not None and f"activations scale {scale}" in decoder.note
    assert encoder.note is None and "activations_scale_factor" not in exported["vae_encoder"].details
    models = {name: ov.Core().read_model(each.entry) for name, each in exported.items()}
    assert float(models["vae_decoder"].get_rt_info(place).astype(str)) == scale
    assert not models["vae_encoder"].has_rt_info(place)
    component = next(c for c in plan._components if c.name == "vae_decoder")
    inputs = component.example_inputs(component.native)
    with torch.no_grad():
        (expected,) = component.reference_module()(**inputs)
    compiled = ov.Core().compile_model(models["vae_decoder"], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    (got,) = compiled([inputs["latent_sample"].numpy()]).values()
    assert np.linalg.norm(got - expected.numpy()) <= 5e-3 * np.linalg.norm(expected.numpy())


def test_scales() -> None:
    assert [scale_for(peak) for peak in (7e4, 5e5, 6e5, 8e6)] == [8, 8, 16, 128]
    assert math.isfinite(scale_for(math.nan)) and math.isfinite(scale_for(math.inf))


def test_peaks_are_those_of_the_module(tiny: Path) -> None:
    """Against values gathered by plain hooks, which see module outputs only, so the peak is no smaller."""
    component = next(c for c in components_of(resolve(tiny)) if c.name == "vae_decoder")
    inputs = component.example_inputs(component.native)
    peak = peak_of(component, [Inputs("a", "random", "a", inputs)])
    module = component.reference_module()
    seen: list[float] = []
    for layer in module.modules():
        layer.register_forward_hook(
            lambda layer, args, out: seen.append(
                float((out[0] if isinstance(out, tuple) else out).abs().max())
            )
        )
    with torch.no_grad():
        module(**inputs)
    assert max(seen) <= peak.value < 100 * max(seen)
    assert peak.where in dict(module.get_submodule("inner").named_modules())


def test_timesteps_are_no_activations(tiny: Path) -> None:
    """They and the argument of their sine go up to 1000, in float32 whatever the dtype is."""
    component = next(c for c in components_of(resolve(tiny)) if c.name == "unet")
    inputs = component.example_inputs(component.native)
    peaks = [
        peak_of(component, [Inputs("a", "random", "a", inputs | {"timestep": torch.tensor(float(step))})])
        for step in (1, 999)
    ]
    assert all(0 < peak.value < 500 for peak in peaks)


def test_masks_are_no_activations(tiny: Path) -> None:
    """A text encoder's mask is the lowest float32; what it computes is small."""
    component = next(c for c in components_of(resolve(tiny)) if c.name == "text_encoder")
    peak = peak_of(component, [Inputs("a", "random", "a", component.example_inputs(component.native))])
    assert 0 < peak.value < 1e4


def test_a_value_that_is_no_number_is_not_safe(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from exporter.parity import activations

    plan = make_plan(str(tiny), "onnx", None, {"dtype": "float16"}, components=["vae_decoder"])
    nan = {"vae_decoder": activations.Peak(math.nan, "decoder", 1)}
    monkeypatch.setattr(activations, "measure_peaks", lambda *given, **named: nan)
    (safety,) = float16.decide(plan, {}, NullProgress()).values()
    assert safety.options.dtype == "float32"


def test_force_upcast_is_heeded_where_nothing_is_measured(tmp_path: Path) -> None:
    """SDXL's autoencoder without verification; with it the measurement decides."""
    from tests.tiny_sdxl import make_tiny_sdxl

    source = make_tiny_sdxl(tmp_path / "xl")
    plan = make_plan(str(source), "onnx", tmp_path / "out", {"dtype": "float16"}, verify=False)
    kinds = {n: s.options.dtype for n, s in float16.decide(plan, {}, NullProgress()).items()}
    assert {name for name, kind in kinds.items() if kind == "float32"} == {"vae_decoder", "vae_encoder"}


def test_sines_and_masks_in_a_float16_graph(converted: Conversion, tiny: Path, tmp_path: Path) -> None:
    """The timestep's sine and cosine get float32; no constant is infinite, the text's mask included."""
    onnx = pytest.importorskip("onnx")
    half = {"dtype": "float16"}
    text = make_plan(str(tiny), "onnx", tmp_path / "out", half, verify=False, components=["text_encoder"])
    roots = {"unet": converted.artifact.root, "text_encoder": convert(text).artifact.root}
    kinds: dict[str, list[int]] = {}
    lowest = 0.0
    for name, root in roots.items():
        model = onnx.shape_inference.infer_shapes(onnx.load(root / name / "model.onnx"))
        values = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
        kinds[name] = [values[n.input[0]] for n in model.graph.node if n.op_type in ("Sin", "Cos")]
        for tensor in model.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor, str(root / name))
            if array.dtype.kind == "f" and array.size:
                assert np.isfinite(array).all(), tensor.name
                lowest = min(lowest, float(array.min()))
    assert kinds["unet"] == [onnx.TensorProto.FLOAT] * 2
    assert lowest == -65504.0
