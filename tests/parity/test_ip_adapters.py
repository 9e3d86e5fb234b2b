"""IP-Adapters are judged: the encoder, the UNet that looks, the whole picture; a fault in any is found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from exporter.checkpoints import Checkpoint, open_source
from exporter.conversion import convert, make_plan
from exporter.parity import Report, verify
from exporter.targets import get_target
from tests import ip_adapters
from tests.parity.torch_target import Fault, TorchTarget, make_artifact


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ip_adapters.write(tiny / "unet", tmp_path_factory.mktemp("judged") / "adapter")


@pytest.fixture(scope="module")
def merged(tiny: Path, adapter: Path) -> Checkpoint:
    return open_source(tiny, ip_adapters=[str(adapter)])


def judged(
    merged: Checkpoint, root: Path, truths: Path, monkeypatch: pytest.MonkeyPatch,
    faults: Mapping[str, Fault] | None = None, **settings: Any,
) -> Report:  # fmt: skip
    target = TorchTarget(merged, faults)
    monkeypatch.setattr("exporter.targets.get_target", lambda name: target)
    given = {"steps": 2, "samples": 1, "prompts": ["a red star"], "cache": truths, "bisect": False}
    return verify(make_artifact(merged, root / "artifact"), **(given | settings))


def test_an_honest_one_passes(
    merged: Checkpoint, truths: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = judged(merged, tmp_path, truths, monkeypatch)
    assert report.verdict == "PASS", report.summary
    assert report.pipeline is not None and "looks at waves of colour" in str(report.pipeline.given)
    assert report.pipeline.exported == ["text_encoder", "image_encoder", "unet", "vae_decoder"]
    parts = {part.name: part for part in report.components}
    for name, wanted in (
        ("image_encoder", {"captured", "batch"}),
        ("unet", {"captured", "batch", "aspect", "sequence", "timestep"}),
    ):
        assert wanted <= {case.kind for case in parts[name].runs[0].cases}, name
    captured = next(c for c in parts["unet"].runs[0].cases if c.kind == "captured")
    assert captured.inputs["ip_adapter_scale"] == "float32[]"
    assert captured.inputs["image_embeds"] == "float32[2, 1, 28]"


def louder(module: nn.Module) -> None:
    """One of the picture's keys."""
    weight = next(p for n, p in module.named_parameters() if n.endswith("to_k_ip.0.weight"))
    weight.data *= 1.01


def exchanged(module: nn.Module) -> None:
    """The picture's values of two attentions of one width, as another order of their numbers would do it."""
    values = [p for n, p in module.named_parameters() if n.endswith("to_v_ip.0.weight")]
    first, second = next((a, b) for i, a in enumerate(values) for b in values[i + 1 :] if a.shape == b.shape)
    first.data, second.data = second.data, first.data


def unscaled(module: nn.Module) -> None:
    """The scale is left out."""
    for each in module.modules():
        if hasattr(each, "to_k_ip"):
            each.scale = [1.0]  # type: ignore[assignment]


def other_tokens(module: nn.Module) -> None:
    weight = module.get_parameter("inner.encoder_hid_proj.image_projection_layers.0.image_embeds.weight")
    weight.data = weight.data.roll(1, 0)


def blind(module: nn.Module) -> None:
    weight = module.get_parameter("inner.vision_model.embeddings.patch_embedding.weight")
    weight.data = torch.flip(weight.data, [1])


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("unet", louder), ("unet", exchanged), ("unet", unscaled), ("unet", other_tokens),
        ("image_encoder", blind),
    ],
)  # fmt: skip
def test_a_planted_fault_is_found(
    merged: Checkpoint, truths: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, fault: Fault
) -> None:
    report = judged(merged, tmp_path, truths, monkeypatch, {name: fault}, components=[name])
    assert report.verdict == "FAIL", report.summary


@pytest.mark.full
def test_what_is_written_as_onnx_passes(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    plan = make_plan(
        str(tiny), "onnx", tmp_path / "artifact", {}, components=["unet"],
        intake={"ip_adapters": [str(adapter)]},
    )  # fmt: skip
    done = convert(plan, verify_settings={"steps": 1, "samples": 1, "prompts": ["a red star"]})
    assert done.verdict == "PASS", done.summary
    (record,) = done.artifact.manifest.components
    dims = {spec.name: spec.dims for spec in record.inputs}
    assert dims["image_embeds"] == ["batch", 1, 28] and dims["ip_adapter_scale"] == []
    for target in ("onnx", "openvino"):  # what a model card offers: no client but ours knows one
        (client,) = get_target(target, require_backend=False).clients("me/look", done.artifact.manifest)
        assert client.title == "exporter" and "--ip-adapter-image look.png" in client.code


@pytest.mark.full
@pytest.mark.parametrize(("target", "options"), [
    ("onnx", {"dtype": "float16"}), ("openvino", {"dtype": "float16"}), ("openvino", {}), ("torchscript", {}),
    ("pt2", {}), ("stablehlo", {}), ("onnx", {"static": "1x64x64"}),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["plain", "plus"])
def test_every_format_passes(
    tiny: Path, tmp_path: Path, target: str, options: dict[str, Any], kind: str
) -> None:
    folder = ip_adapters.write(tiny / "unet", tmp_path / "adapter", kind)
    intake = {"ip_adapters": [str(folder)]}
    plan = make_plan(str(tiny), target, tmp_path / "artifact", options, intake=intake)
    done = convert(plan, verify_settings={"steps": 2, "samples": 1})
    assert done.verdict == "PASS", done.summary
