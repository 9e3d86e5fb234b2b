"""The code of model cards names classes that exist, for every family."""

from __future__ import annotations

import ast
from importlib import import_module

import pytest

from exporter.architectures import FAMILIES
from exporter.artifact import ComponentRecord, Manifest, SourceRecord, TensorRecord
from exporter.targets import get_target

NOT_IN_GENAI = ("PixArt", "Sana")


@pytest.mark.parametrize("target", ["onnx", "openvino", "safetensors"])
@pytest.mark.parametrize("pipeline_class", FAMILIES)
def test_the_pipeline_of_optimum_exists(target: str, pipeline_class: str) -> None:
    source = SourceRecord(source="x", pipeline_class=pipeline_class)
    clients = get_target(target).clients("org/name", Manifest(target=target, source=source))
    assert not (pipeline_class.startswith(NOT_IN_GENAI) and "OpenVINO GenAI" in {c.title for c in clients})
    client = clients[0]
    if client.language != "python":  # only where there is none
        library, prefix = {"onnx": ("onnxruntime", "ORT"), "openvino": ("intel", "OV")}[target]
        assert not hasattr(pytest.importorskip(f"optimum.{library}"), f"{prefix}{pipeline_class}")
        return
    tree = ast.parse(client.code)
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    module = str(imported[0].module)
    pytest.importorskip(module)
    assert hasattr(import_module(module), imported[0].names[0].name)
    starts, controlled = (
        any(word in pipeline_class for word in ("Img2Img", "Inpaint", "ImageToVideo")),
        ("ControlNet" in pipeline_class or "Adapter" in pipeline_class),
    )
    assert (" image=" in client.code) == (starts or controlled)
    assert ("control_image=" in client.code) == (starts and controlled)
    assert ("mask_image=" in client.code) == ("Inpaint" in pipeline_class)


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_a_pipeline_that_was_observed_is_opened_by_us_alone(target: str) -> None:
    source = SourceRecord(source="x", pipeline_class="StableDiffusionInstructPix2PixPipeline")
    clients = get_target(target).clients("org/name", Manifest(target=target, source=source))
    assert [client.title for client in clients] == ["exporter"]


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_a_clip_that_begins_with_a_picture_is_given_one(target: str) -> None:
    source = SourceRecord(source="x", pipeline_class="LTXImageToVideoPipeline")
    (client,) = get_target(target).clients("org/name", Manifest(target=target, source=source))
    assert client.title == "exporter" and client.code.endswith("-o clip.gif --image start.png")


def traced(pipeline_class: str, *inputs: tuple[str, list[int]]) -> Manifest:
    """The manifest of a TorchScript artifact that holds a UNet only."""
    specs = [TensorRecord(name=name, dtype="float32", dims=list(shape)) for name, shape in inputs]
    record = ComponentRecord(
        name="unet", entry="unet/model.pt", files=[], inputs=specs, outputs=[], parameters=1, dtype="float32",
        details={"traced_at": dict(inputs)},
    )  # fmt: skip
    source = SourceRecord(source="org/name", pipeline_class=pipeline_class)
    return Manifest(target="torchscript", source=source, components=[record])


def test_a_program_is_called_with_the_inputs_it_was_traced_with() -> None:
    import torch

    manifest = traced("StableDiffusionXLPipeline", ("sample", [2, 4, 8, 8]), ("timestep", []))
    client = get_target("torchscript").clients("org/name", manifest)[0]
    seen: list[tuple[int, ...]] = []

    def load(path: str) -> object:
        assert path == "org/name unet/model.pt"
        return lambda *given: [seen.append(tuple(value.shape)) or value for value in given]

    code = client.code.replace("torch.jit.load(", "load(").replace(
        "from huggingface_hub import hf_hub_download", "hf_hub_download = lambda *names: ' '.join(names)"
    )
    exec(compile(code, "card", "exec"), {"load": load, "torch": torch})
    assert seen == [(2, 4, 8, 8), ()]


def test_programs_are_opened_with_a_warning_and_packages_need_no_extra() -> None:
    clients = get_target("torchscript").clients("org/name", traced("X", ("sample", [1])))
    assert "--trust" in clients[1].code and "trust" in clients[0].code.lower()
    assert all("[]" not in client.install for client in clients)


def test_what_is_for_a_mac_says_so() -> None:
    source = SourceRecord(source="org/model", pipeline_class="StableDiffusionPipeline")
    clients = get_target("coreml", require_backend=False).clients(
        "o/n", Manifest(target="coreml", source=source)
    )
    mac = [client for client in clients if client.system]
    assert [client.system for client in mac] == ["macOS", "macOS"]
    assert "--model-version org/model" in mac[1].code and "--resource-path" in mac[0].code
