"""`exporter verify` over Core ML: two gates, overflow, compiled models, and where a fault is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from exporter.artifact import Artifact
from exporter.parity import Report, verify
from exporter.parity.schema import Run
from tests.cli.runner import invoke
from tests.mutation.formats.coreml import blobs, operations, read
from tests.mutation.workshop import rehash
from tests.targets.coreml.conftest import Exported, as_artifact, export, judge
from tests.tiny import make_tiny


@pytest.fixture(scope="module")
def honest(half: Exported, tmp_path_factory: pytest.TempPathFactory, truths: Path) -> tuple[Path, Report]:
    artifact = as_artifact(half, tmp_path_factory.mktemp("honest") / "artifact", ["unet", "vae_decoder"])
    return artifact.root, judge(artifact, truths)


def runs(report: Report, name: str) -> dict[str, Run]:
    return {run.mode: run for c in report.components if c.name == name for run in c.runs}


@pytest.mark.parametrize("name", ["unet", "vae_decoder"])
def test_the_graph_is_judged_in_float32_and_the_package_in_float16(
    honest: tuple[Path, Report], name: str
) -> None:
    _, report = honest
    assert report.verdict == "PASS", report.summary
    graph, package = runs(report, name)["graph"], runs(report, name)["default"]
    assert (graph.weights, graph.arithmetic, graph.verdict) == ("float16", "float32", "PASS")
    assert (package.weights, package.arithmetic, package.verdict) == ("float16", "float16", "PASS")
    assert graph.gates and package.gates
    assert graph.worst is not None and package.worst is not None
    assert graph.worst.floor < package.worst.floor, "the first gate is the narrower one"


def test_the_graph_is_judged_with_the_weights_it_has(honest: tuple[Path, Report]) -> None:
    """Beside the rounding of all weights (6e-4 here) a fault of the graph would have room."""
    _, report = honest
    for name in ("unet", "vae_decoder"):
        graph, package = runs(report, name)["graph"], runs(report, name)["default"]
        assert (graph.truth, package.truth) == ("float16", "float32")
        assert graph.worst is not None and package.worst is not None
        assert graph.worst.value < 1e-5 and package.worst.value > 1e-4


def tanh(package: Path) -> None:
    """One gelu of the UNet in its other form: 1e-4 of the output."""
    spec = read(package)
    name = next(op for op in operations(spec) if op.type == "gelu").inputs["mode"].arguments[0].name
    mode = next(op for op in operations(spec) if op.outputs and op.outputs[0].name == name)
    mode.attributes["val"].immediateValue.tensor.strings.values[0] = "TANH_APPROXIMATION"
    (package / "Data/com.apple.CoreML/model.mlmodel").write_bytes(spec.SerializeToString())


def one_weight(package: Path) -> None:
    """One convolution a thousandth too large."""
    kernel = next(blob for blob in blobs(package) if len(blob.shape) == 4 and blob.dtype == "float16")
    kernel.write((kernel.read().astype(np.float32) * 1.001).astype(np.float16))


@pytest.mark.parametrize("fault", [tanh, one_weight])
def test_a_fault_below_the_rounding_of_weights_is_found(
    half: Exported, truths: Path, tmp_path: Path, fault: Callable[[Path], None]
) -> None:
    artifact = as_artifact(half, tmp_path / "artifact", ["unet"])
    fault(artifact.root / half.records["unet"].entry)
    rehash(artifact.root)
    report = judge(artifact, truths)
    (part,) = report.components
    found = runs(report, "unet")
    assert found["graph"].verdict == "FAIL" and found["default"].verdict == "PASS", "too small for float16"
    assert report.verdict == "FAIL" and part.bisection is not None and part.bisection.first_bad, (
        part.bisection
    )


def test_both_verdicts_are_shown(honest: tuple[Path, Report], tmp_path: Path) -> None:
    root, _ = honest
    page = (root / "verification" / "report.html").read_text()
    shown = invoke("verify", "--rejudge", root / "verification" / "report.json")
    assert shown.code == 0
    for text in (
        "he graph: float32 arithmetic on float16 weights", "s it runs by default: float16 arithmetic",
    ):  # fmt: skip
        assert text in page and text in shown.stdout
    assert "Largest values: " in page and "float16 holds 65504" in page
    stored = json.loads((root / "verification" / "report.json").read_text())
    assert [run["verdict"] for c in stored["components"] for run in c["runs"]] == ["PASS"] * 4


def test_the_largest_values_are_kept(honest: tuple[Path, Report]) -> None:
    root, report = honest
    recorded = Artifact.open(root).manifest.verification
    assert recorded is not None and set(recorded.peaks) == {"unet", "vae_decoder"}
    for name, record in recorded.peaks.items():
        rows = runs(report, name)["default"].peaks
        bounded = [row for row in rows if row.limit is not None]
        assert len(bounded) > 50 and record.peak == max(row.peak for row in bounded)
        assert record.limit == 65504 and record.module
        assert all(row.module is not None for row in rows)


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A VAE of which float16 can hold the weights, and not what its first convolution computes."""
    folder = make_tiny(tmp_path_factory.mktemp("loud") / "loud-sd")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    for name in ("decoder.conv_in.weight", "decoder.conv_in.bias"):
        tensors[name] = tensors[name] * 3e5
    assert all(float(t.abs().max()) < 65504 for t in tensors.values())
    save_file(tensors, weights, metadata={"format": "pt"})
    return export(folder, tmp_path_factory.mktemp("loud16"), ("vae_decoder",))


def test_an_overflow_fails_and_is_named(loud: Exported, tmp_path: Path) -> None:
    artifact = as_artifact(loud, tmp_path / "artifact", ["vae_decoder"])
    report = judge(artifact, tmp_path / "truths")
    (part,) = report.components
    found = runs(report, "vae_decoder")
    assert found["graph"].verdict == "PASS", "the graph is right"
    assert report.verdict == part.verdict == found["default"].verdict == "FAIL"
    assert "float16 overflows: conv '" in report.summary and "in decoder.conv_in reaches " in report.summary
    assert "float16 holds 65504" in report.summary
    first = next(row for row in found["default"].peaks if not row.peak <= 65504)
    assert first.operation == "conv" and first.module == "decoder.conv_in" and 65504 < first.peak < 1e8
    assert part.bisection is not None and part.bisection.first_bad == "decoder.conv_in"
    recorded = Artifact.open(artifact.root).manifest.verification
    assert (
        recorded is not None and recorded.verdict == "FAIL" and recorded.peaks["vae_decoder"].limit == 65504
    )


DEEP = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v",
    "mid_block.resnets.1.conv2",
    "up_blocks.1.attentions.1.transformer_blocks.0.ff.net.2",
)


@pytest.mark.parametrize("module", DEEP)
def test_a_fault_deep_in_the_package_is_named(
    half: Exported, truths: Path, tmp_path: Path, module: str
) -> None:
    artifact = as_artifact(half, tmp_path / "artifact", ["unet"])
    package = artifact.root / half.records["unet"].entry
    with half.open("unet") as runner:
        value = runner._modules[module][0]
    kernel = weight_of(package, value)
    kernel.write((kernel.read().astype(np.float32) * 1.05).astype(np.float16))
    rehash(artifact.root)
    report = judge(artifact, truths)
    (part,) = report.components
    assert report.verdict == "FAIL" and runs(report, "unet")["graph"].verdict == "FAIL"
    assert part.bisection is not None and part.bisection.first_bad == module, part.bisection
    assert f"First bad module: {module}" in report.summary


def weight_of(package: Path, value: str):
    """The stored weight of the operation that makes a value."""
    spec = read(package)
    maker = next(op for op in operations(spec) if op.outputs and op.outputs[0].name == value)
    while "weight" not in maker.inputs:  # a change of layout after it
        name = next(iter(maker.inputs["x"].arguments)).name
        maker = next(op for op in operations(spec) if op.outputs and op.outputs[0].name == name)
    name = maker.inputs["weight"].arguments[0].name
    stored = [
        op for op in operations(spec)
        if op.type == "const" and op.attributes["val"].WhichOneof("value") == "blobFileValue"
    ]  # fmt: skip
    place = next(i for i, op in enumerate(stored) if op.outputs[0].name == name)
    return blobs(package)[place]


# Compiled models


def test_compiled_models_are_inconclusive_off_a_mac(
    honest: tuple[Path, Report], truths: Path, tmp_path: Path, half: Exported
) -> None:
    artifact = as_artifact(half, tmp_path / "artifact", ["vae_decoder"])
    compiled = artifact.root / "Resources" / "VAEDecoder.mlmodelc"
    compiled.mkdir(parents=True)
    (compiled / "model.mil").write_text("program(1.0)")
    report = judge(artifact, truths)
    assert report.verdict == "INCONCLUSIVE"
    assert [(c.name, c.verdict) for c in report.components] == [
        ("vae_decoder", "PASS"), ("Resources/VAEDecoder.mlmodelc", "INCONCLUSIVE"),
    ]  # fmt: skip
    assert "only Core ML itself can run: copy the artifact to a Mac" in report.summary
    recorded = Artifact.open(artifact.root).manifest.verification
    assert recorded is not None and recorded.verdict == "INCONCLUSIVE"
    assert "VAEDecoder.mlmodelc" in (artifact.root / "verification" / "report.html").read_text()
    alone = judge(artifact, truths, components=["vae_decoder"], report_dir=tmp_path / "r")
    assert alone.verdict == "PASS" and not alone.complete


def test_a_compiled_model_by_itself(tmp_path: Path) -> None:
    compiled = tmp_path / "Unet.mlmodelc"
    compiled.mkdir()
    (compiled / "coremldata.bin").write_bytes(b"\0" * 8)
    shown = invoke("verify", compiled)
    assert shown.code == 5
    assert "INCONCLUSIVE" in shown.stdout and "on a Mac `exporter verify ARTIFACT`" in shown.stdout
    assert [p.name for p in compiled.iterdir()] == ["coremldata.bin"], "nothing is written into it"
    document = invoke("--json", "verify", compiled).document
    assert document["verdict"] == "INCONCLUSIVE" and document["hashes"].keys() == {"coremldata.bin"}
    report = verify(compiled, report_dir=tmp_path / "report")
    assert report.verdict == "INCONCLUSIVE" and (tmp_path / "report" / "report.html").is_file()


def test_a_component_that_is_a_compiled_model(half: Exported, truths: Path, tmp_path: Path) -> None:
    artifact = as_artifact(half, tmp_path / "artifact", ["vae_decoder"])
    record = artifact.manifest.components[0]
    package = artifact.root / record.entry
    compiled = package.rename(package.with_suffix(".mlmodelc"))
    files = [f.model_copy(update={"path": f.path.replace(".mlpackage", ".mlmodelc")}) for f in record.files]
    artifact.manifest.components = [record.model_copy(update={"entry": compiled.name, "files": files})]
    artifact.save()
    report = judge(artifact, truths)
    assert report.verdict == "INCONCLUSIVE" and "which only Core ML itself can open" in report.summary
