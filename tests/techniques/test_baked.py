"""Techniques in the components: each computes what the technique does to PyTorch, by other code than ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter import pipeline, techniques
from exporter.architectures import Component, Size, components_of
from exporter.architectures.baked.driving import Steps, driver_of
from exporter.artifact import Artifact
from exporter.checkpoints import Checkpoint, open_source
from exporter.conversion import convert, make_plan
from exporter.errors import ArtifactError, UsageError
from exporter.parity.arithmetic import Reference
from exporter.parity.reference import paint_reference, plan_of
from tests.cli.runner import invoke

PROMPT = "a large red star at the left on a blue background"
GIVEN: dict[str, dict[str, Any]] = {
    "fused-qkv": {},
    "token-merging": {"ratio": 0.5},
    "deep-cache": {"interval": 3},
    "t-gate": {"gate": 3},
}
STEPS = 7


def carrying(source: Path | str, *given: techniques.Named) -> Checkpoint:
    return techniques.bake(given, "onnx", open_source(str(source)))


def denoisers(checkpoint: Checkpoint) -> list[Component]:
    return [component for component in components_of(checkpoint) if component.folder == "unet"]


SIZES = (Size(2, 64, 64, 77, 8), Size(1, 128, 64, 9, 8), Size(3, 64, 192, 77, 8))


@pytest.mark.parametrize("name", GIVEN)
def test_a_graph_computes_what_its_reference_does(name: str, tiny: Path) -> None:
    """In PyTorch: our module, with the weights that are exported, against the library's."""
    found = denoisers(carrying(tiny, {name: GIVEN[name]}))
    assert len(found) == (2 if name in ("deep-cache", "t-gate") else 1)
    for component in found:
        module = component.reference_module()
        with Reference(component) as reference:
            assert type(reference.module.get_submodule("inner")).__name__ == "UNet2DConditionModel"
            for number, size in enumerate(SIZES):
                inputs = component.example_inputs(size, seed=number)
                wanted = reference(inputs)
                with torch.no_grad():
                    outputs = module(**inputs)
                for spec, value in zip(component.outputs, outputs, strict=True):
                    assert value.shape == wanted[spec.name].shape == spec.shape(size)
                    torch.testing.assert_close(value, wanted[spec.name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("branch", [0, 1, 2])
def test_every_branch_of_deep_cache(branch: int, tiny: Path) -> None:
    whole, shallow = denoisers(carrying(tiny, {"deep-cache": {"branch": branch}}))
    inputs = whole.example_inputs(whole.native)
    with torch.no_grad():
        out, cached = whole.reference_module()(**inputs)
        again = shallow.reference_module()(**inputs, cached=cached)
    torch.testing.assert_close(again[0], out, rtol=1e-5, atol=1e-5)
    assert shallow.parameters < whole.parameters / 2


def test_two_techniques_in_one_graph(tiny: Path) -> None:
    (merging,) = denoisers(carrying(tiny, "fused-qkv", "token-merging"))
    whole, shallow = denoisers(carrying(tiny, "fused-qkv", "deep-cache"))
    assert any("to_qkv" in name for name in whole.weights) and not any(
        "to_q." in n for n in whole.weights if "attn1" in n
    )
    for component in (whole, shallow, merging):
        inputs = component.example_inputs(component.native)
        with Reference(component) as reference, torch.no_grad():
            assert not any("to_qkv" in name for name, _ in reference.module.named_parameters())
            wanted = reference(inputs)["out_sample"]
            torch.testing.assert_close(
                component.reference_module()(**inputs)[0], wanted, rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize("name", [n for n in GIVEN if n != "fused-qkv"])
def test_the_reference_paints_what_the_technique_does_to_the_library(name: str, tiny: Path) -> None:
    """Graphs and their schedule together, against diffusers' pipeline under the technique of PyTorch."""
    for package in techniques.kind(name).packages:
        pytest.importorskip(package)
    checkpoint = carrying(tiny, {name: GIVEN[name]})
    plan = plan_of(checkpoint, None, prompts=[PROMPT], steps=STEPS, seed=3)
    ours = paint_reference(checkpoint, plan, cache=None)
    plain = paint_reference(checkpoint.exported_with(()), plan, cache=None)
    painter = pipeline.from_checkpoint(str(tiny))
    undo = techniques.apply(painter, [{name: GIVEN[name]}])
    try:
        theirs = painter(
            PROMPT, num_inference_steps=STEPS, guidance_scale=plan.guidance, height=plan.height,
            width=plan.width, output_type="latent", generator=torch.Generator().manual_seed(plan.seed),
        ).images  # fmt: skip
    finally:
        undo()
    last = ours.latents[0][-1]
    torch.testing.assert_close(last, theirs, rtol=1e-3, atol=1e-3)
    assert (last - plain.latents[0][-1]).abs().max() > 1e-2, "the technique changed nothing"
    if name == "deep-cache":
        assert (len(ours.calls["unet"]), len(ours.calls["unet_shallow"])) == (3, 4)
    if name == "t-gate":
        assert [call.inputs["sample"].shape[0] for call in ours.calls["unet_gated"]] == [1] * 4


def test_another_technique_is_another_reference(tiny: Path) -> None:
    """Truths and pictures are kept by these digests: none may be taken for another's."""
    given: list[techniques.Named] = [
        "fused-qkv", "token-merging", {"token-merging": {"ratio": 0.3}}, "deep-cache",
        {"deep-cache": {"interval": 2}}, "t-gate",
    ]  # fmt: skip
    found = [c.weights_digest for each in given for c in denoisers(carrying(tiny, each))]
    found += [c.weights_digest for c in denoisers(open_source(str(tiny)))]
    assert len(set(found)) == len(found)


def test_steps_are_counted_by_falling_timesteps() -> None:
    steps = Steps()
    given = [900, 600, 600, 300, 900, 600, 600]
    assert [steps.at(torch.tensor(float(t))) for t in given] == [0, 1, 1, 3, 0, 1, 1]
    once = Steps()
    assert [once.at(torch.tensor(999.0)) for _ in range(3)] == [0, 0, 0]


def test_without_guidance_the_gate_keeps_all_rows() -> None:
    driver = driver_of([("t-gate", {"gate": 1})])
    assert driver is not None
    rows: list[tuple[str, int]] = []

    def ask(name: str, inputs: Any) -> dict[str, torch.Tensor]:
        rows.append((name, inputs["sample"].shape[0]))
        return {"out_sample": inputs["sample"], "cross_attention": inputs["sample"]}

    for timestep in (9.0, 5.0):
        driver(ask, {"sample": torch.randn(2, 1, 2, 2), "timestep": torch.tensor(timestep)})
    assert rows == [("unet", 2), ("unet_gated", 2)]


@pytest.mark.parametrize(
    ("target", "given", "message"),
    [
        ("coreml", "fused-qkv", "fused-qkv cannot be carried by the target coreml"),
        ("safetensors", "fused-qkv", "cannot be carried by the target safetensors"),
        ("pt2", "token-merging", "token-merging cannot be carried by the target pt2"),
        ("torchscript", "deep-cache", "deep-cache cannot be carried by the target torchscript"),
        ("stablehlo", "t-gate", "t-gate cannot be carried by the target stablehlo"),
        ("onnx", "first-block-cache", "cannot be carried by the target onnx"),
        ("onnx", {"deep-cache": {"branch": 3}}, "below the outermost level"),
        ("onnx", {"token-merging": {"max_downsample": 4}}, "may be odd"),
        ("onnx", {"token-merging": {"ratio": 0.1234567}}, "cannot count a share"),
        ("onnx", {"t-gate": {"gate": 0}}, "gate"),
        ("onnx", ["deep-cache", "token-merging"], "one of token-merging and deep-cache, not both"),
        ("onnx", ["fused-qkv", "t-gate"], "cannot be combined"),
    ],
)
def test_what_a_target_cannot_carry_is_refused(target: str, given: Any, message: str, tiny: Path) -> None:
    with pytest.raises(UsageError, match=message):
        given = given if isinstance(given, list) else [given]
        components_of(techniques.bake(given, target, open_source(str(tiny))))


def test_bad_spellings_on_the_command_line(tiny: Path) -> None:
    given = ("convert", tiny, "--to", "onnx", "--dry-run", "--technique")
    invoke(*given, "deep-cash").failed(2, "no technique 'deep-cash'")
    invoke(*given, "deep-cache:interval").failed(2, "is not NAME or NAME:KEY=VALUE")
    invoke(*given, "deep-cache:intervall=3").failed(2, "intervall")
    invoke(*given, "deep-cache:interval=often").failed(2, "interval")
    shown = invoke(*given, "deep-cache:interval=4,branch=1", "--technique", "fused-qkv", "--json")
    assert shown.code == 0 and '"interval": 4' in shown.stdout and "unet_shallow" in shown.stdout


@pytest.fixture(scope="module")
def cached(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An ONNX artifact with DeepCache, verified."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("cached") / "artifact"
    plan = make_plan(str(tiny), "onnx", folder, techniques=[{"deep-cache": {"interval": 3}}])
    done = convert(plan, verify_settings={"steps": 4, "samples": 2, "prompts": [PROMPT]})
    assert done.verdict == "PASS", done.summary
    yield folder


def test_an_artifact_says_what_it_carries_and_what_that_costs(cached: Path) -> None:
    manifest = Artifact.open(cached).manifest
    assert [(t.name, t.options) for t in manifest.techniques] == [
        ("deep-cache", {"interval": 3, "branch": 0})
    ]
    assert [c.name for c in manifest.components][1:3] == ["unet", "unet_shallow"]
    assert manifest.verification is not None
    assert "deep-cache (interval 3, branch 0), lossy" in manifest.verification.summary
    assert "dB (PSNR) from those of the model without it" in manifest.verification.summary


def test_an_artifact_paints_what_pytorch_with_the_technique_paints(cached: Path, tiny: Path) -> None:
    pytest.importorskip("DeepCache")
    painter = pipeline.from_checkpoint(str(tiny))
    plain = _painted(painter)
    undo = techniques.apply(painter, [{"deep-cache": {"interval": 3}}])
    theirs = _painted(painter)
    undo()
    exported = pipeline.load(cached)
    ours = _painted(exported)
    assert np.abs(ours - theirs).max() <= 1  # of 255
    assert np.abs(ours - plain).max() > 1
    assert np.array_equal(_painted(exported), ours), "the second picture begins anew"


def _painted(painter: Any) -> np.ndarray:
    (picture,) = pipeline.paint(painter, [PROMPT], steps=STEPS, seed=1)
    return np.asarray(picture, np.int64)


def test_only_our_own_code_is_offered_for_two_graphs(cached: Path) -> None:
    """optimum takes the last output for the first, so that what is kept would become the picture."""
    from exporter.targets import get_target

    manifest = Artifact.open(cached).manifest
    assert [each.title for each in get_target("onnx").clients("me/mine", manifest)] == ["exporter"]
    assert len(get_target("onnx").clients("me/mine", manifest.model_copy(update={"techniques": []}))) == 2


def test_an_artifact_of_a_later_version_is_refused(cached: Path, tmp_path: Path) -> None:
    import shutil

    from exporter.artifact import TechniqueRecord

    copy = tmp_path / "later"
    shutil.copytree(cached, copy)
    artifact = Artifact.open(copy)
    artifact.manifest.techniques = [TechniqueRecord(name="hyper-cache")]
    artifact.save()
    with pytest.raises(ArtifactError, match="does not know: There is no technique 'hyper-cache'"):
        pipeline.load(copy)


def test_both_graphs_have_their_weights_in_one_file(cached: Path) -> None:
    manifest = Artifact.open(cached).manifest
    whole, shallow = manifest.component("unet"), manifest.component("unet_shallow")
    assert shallow.entry == "unet/model_shallow.onnx" and not (cached / "unet_shallow").exists()
    common = [f for f in shallow.files if f in whole.files]
    assert [f.path for f in common] == ["unet/model.onnx_data"]
    assert common[0].bytes < whole.parameters * 4 * 1.1 + 4096


def test_a_fault_in_the_shallow_graph_is_found(cached: Path, tmp_path: Path) -> None:
    """One weight of this graph alone is changed, and the manifest agrees: the verdict names the graph."""
    import shutil

    import onnx

    from exporter.artifact import hash_files
    from exporter.parity import verify

    copy = tmp_path / "faulty"
    shutil.copytree(cached, copy)
    artifact = Artifact.open(copy)
    record = artifact.manifest.component("unet_shallow")
    path = copy / record.entry
    model = onnx.load(path, load_external_data=False)
    whole = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    place = next(i for i, t in enumerate(model.graph.initializer) if "conv_out.weight" in t.name)
    values = onnx.numpy_helper.to_array(whole[model.graph.initializer[place].name]) * np.float32(1.01)
    name = model.graph.initializer[place].name
    model.graph.initializer[place].CopyFrom(onnx.numpy_helper.from_array(values, name))
    path.write_bytes(model.SerializeToString())
    record.files = hash_files([copy / file.path for file in record.files], copy)
    artifact.save()
    report = verify(copy, steps=4, samples=2, prompts=[PROMPT], bisect=False)
    assert report.verdict == "FAIL"
    found = {c.name: c.verdict for c in report.components}
    assert (found["unet"], found["unet_shallow"]) == ("PASS", "FAIL")


@pytest.mark.full
@pytest.mark.parametrize("target", ["onnx", "openvino"])
@pytest.mark.parametrize("name", GIVEN)
def test_every_technique_passes_in_both_formats(name: str, target: str, tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime" if target == "onnx" else "openvino")
    plan = make_plan(str(tiny), target, tmp_path / "artifact", techniques=[{name: GIVEN[name]}])
    done = convert(plan, verify_settings={"steps": STEPS})
    assert done.verdict == "PASS", done.summary
    assert _painted(pipeline.load(tmp_path / "artifact")).shape == (64, 64, 3)
