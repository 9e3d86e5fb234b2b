"""`verify` from end to end over a torch artifact: no false alarm, no missed fault, nothing unsaid."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from exporter.artifact import MANIFEST, Artifact
from exporter.checkpoints import Checkpoint, resolve
from exporter.errors import ArtifactError, CheckpointError, UsageError, VerificationFailed
from exporter.parity import Report, rejudge
from tests.parity.conftest import JudgeTorch
from tests.parity.torch_target import make_artifact
from tests.tiny import make_tiny

Arrays = dict[str, np.ndarray]


def part(report: Report, name: str):
    return next(c for c in report.components if c.name == name)


def test_importing_parity_loads_nothing_heavy() -> None:
    code = (
        "import sys, exporter.parity; from exporter.parity import Report, rejudge;"
        "bad = {'torch', 'onnx', 'onnxruntime', 'openvino', 'diffusers', 'numpy'} & set(sys.modules);"
        "sys.exit(f'loaded {bad}' if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_honest_artifact_passes(judge_torch: JudgeTorch, checkpoint: Checkpoint, tmp_path: Path) -> None:
    report = judge_torch(pipeline=True)
    assert report.verdict == "PASS", report.summary
    assert [c.verdict for c in report.components] == ["PASS"] * 4
    kinds = {case.kind for c in report.components for run in c.runs for case in run.cases}
    assert kinds == {"captured", "batch", "aspect", "sequence", "timestep", "vocabulary"}
    for component in report.components:
        assert component.worst is not None and 0 < component.worst.ratio <= 1
        assert all(case.outputs and not case.problems for run in component.runs for case in run.cases)
    assert report.pipeline is not None and report.pipeline.verdict == "PASS"
    painting = report.pipeline.runs[0].paintings[0]
    assert len(painting.steps) == 2 and all(s.twin > 0 for s in painting.steps)
    assert painting.psnr_db is not None and painting.psnr_db > 60

    artifact = Artifact.open(tmp_path / "artifact")
    record = artifact.manifest.verification
    assert record is not None and record.verdict == "PASS" and record.digest == artifact.manifest.digest()
    assert artifact.verified(rehash=True) == "PASS"
    assert record.report is not None
    stored = Report.load(artifact.root / record.report)
    assert stored.model_dump(exclude={"seconds"}) == report.model_dump(exclude={"seconds"})
    assert json.loads((artifact.root / record.report).read_text())["verdict"] == "PASS"
    assert (artifact.root / "verification" / "inputs.safetensors").is_file()
    assert str(Path.home()) not in json.dumps(stored.environment)


def test_a_changed_byte_voids_the_verdict_and_is_refused(judge_torch: JudgeTorch, tmp_path: Path) -> None:
    judge_torch(components=["text_encoder"])
    root = tmp_path / "artifact"
    assert Artifact.open(root).verified(rehash=True) == "PASS"
    weights = root / "text_encoder" / "module.json"
    weights.write_text(weights.read_text().replace("t", "T", 1))
    assert Artifact.open(root).verified(rehash=True) is None
    with pytest.raises(ArtifactError, match=r"changed after it was made.*differs"):
        judge_torch(root=root)
    weights.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        judge_torch(root=root)


def scaled(factor: float):
    def change(outputs: Arrays, inputs: Mapping[str, np.ndarray]) -> Arrays:
        return {name: (array * factor).astype(array.dtype) for name, array in outputs.items()}

    return change


def spoiled(value: float):
    def change(outputs: Arrays, inputs: Mapping[str, np.ndarray]) -> Arrays:
        name = next(iter(outputs))
        outputs[name].reshape(-1)[7] = value
        return outputs

    return change


def renamed(outputs: Arrays, inputs: Mapping[str, np.ndarray]) -> Arrays:
    return {name + "_x": array for name, array in outputs.items()}


def extra(outputs: Arrays, inputs: Mapping[str, np.ndarray]) -> Arrays:
    return outputs | {"more": np.zeros(1, np.float32)}


def double(outputs: Arrays, inputs: Mapping[str, np.ndarray]) -> Arrays:
    return {name: array.astype(np.float64) for name, array in outputs.items()}


def cut(outputs: Arrays, inputs: Mapping[str, np.ndarray]) -> Arrays:
    return {name: array[..., 1:] for name, array in outputs.items()}


def lost_token(module: nn.Module) -> None:
    """A row of the embedding that no prompt looks up."""
    table = module.inner.text_model.embeddings.token_embedding.weight
    table.data = table.data.clone()
    table.data[7] = 0.0


def test_a_token_that_no_prompt_holds(judge_torch: JudgeTorch) -> None:
    report = judge_torch(components=["text_encoder"], faults={"text_encoder": lost_token})
    assert report.verdict == "FAIL"
    assert [r for r in part(report, "text_encoder").reasons if r.startswith("every token")]


def first_row_only(outputs: Arrays, inputs: Mapping[str, np.ndarray]) -> Arrays:
    return {name: np.repeat(array[:1], len(array), axis=0) for name, array in outputs.items()}


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (spoiled(np.nan), "not finite, first nan"),
        (spoiled(-np.inf), "not finite, first -inf"),
        (scaled(0.0), "relative L2 error"),
        (scaled(1 + 3e-5), "relative L2 error"),
        (spoiled(50.0), "largest absolute error"),
        (renamed, "is missing"),
        (extra, "extra output 'more'"),
        (double, "dtype float64, declared is float32"),
        (cut, "has shape"),
        (first_row_only, "error"),
    ],
)
def test_wrong_outputs_fail(judge_torch: JudgeTorch, fault: object, said: str) -> None:
    report = judge_torch(components=["unet"], after={"unet": fault})
    assert report.verdict == "FAIL"
    assert any(said in reason for reason in part(report, "unet").reasons), part(report, "unet").reasons
    with pytest.raises(VerificationFailed, match="unet"):
        report.raise_for_verdict()


def change_eps(module: nn.Module) -> None:
    for child in module.modules():
        if isinstance(child, nn.GroupNorm):
            child.eps *= 10


def swap_channels(module: nn.Module) -> None:
    weight = module.inner.conv_in.weight
    weight.data = weight.data[:, [1, 0, 2, 3]].clone()


def cast_a_layer(module: nn.Module) -> None:
    weight = module.inner.mid_block.resnets[0].conv1.weight
    weight.data = weight.data.half().float()


@pytest.mark.parametrize("fault", [change_eps, swap_channels, cast_a_layer])
def test_wrong_modules_fail(judge_torch: JudgeTorch, fault: object) -> None:
    assert judge_torch(components=["unet"], faults={"unet": fault}).verdict == "FAIL"


def test_a_batch_that_only_the_export_knew_fails(judge_torch: JudgeTorch) -> None:
    def refuse(outputs: Arrays, inputs: Mapping[str, np.ndarray]) -> Arrays:
        if inputs["sample"].shape[0] != 2:
            raise RuntimeError("reshape: 2 expected\n at node 17")
        return outputs

    report = judge_torch(components=["unet"], after={"unet": refuse})
    reasons = part(report, "unet").reasons
    assert report.verdict == "FAIL"
    assert "batch 1 instead of 2: the artifact refuses it: RuntimeError: reshape: 2 expected" in reasons


def test_a_whole_timestep_only_fails_on_the_fractional_one(judge_torch: JudgeTorch) -> None:
    def floor(module: nn.Module) -> None:
        module.register_forward_pre_hook(
            lambda m, args, kwargs: (args, kwargs | {"timestep": torch.floor(kwargs["timestep"])}),
            with_kwargs=True,
        )

    report = judge_torch(components=["unet"], faults={"unet": floor})
    assert report.verdict == "FAIL"
    assert all(reason.startswith("fractional timestep") for reason in part(report, "unet").reasons)


@pytest.mark.parametrize("arithmetic", ["float16", "bfloat16"])
def test_lower_precision_has_its_own_floor(judge_torch: JudgeTorch, arithmetic: str) -> None:
    honest = judge_torch(components=["unet"], arithmetic=arithmetic)
    run = part(honest, "unet").runs[0]
    assert honest.verdict == "PASS", honest.summary
    assert run.arithmetic == arithmetic
    floor = run.cases[0].outputs[0].floor.relative_l2
    assert floor > 1e-4
    faulty = judge_torch(components=["unet"], arithmetic=arithmetic, faults={"unet": swap_channels})
    assert faulty.verdict == "FAIL"


def test_rejudging_runs_nothing_and_agrees(
    judge_torch: JudgeTorch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = judge_torch(components=["vae_decoder"])
    worst = part(report, "vae_decoder").worst
    assert worst is not None
    path = tmp_path / "artifact" / "verification" / "report.json"
    same = rejudge(path, k=4.0)
    assert (same.verdict, same.summary) == (report.verdict, report.summary)
    assert same.components == report.components
    needed = worst.value / worst.floor
    assert rejudge(path, k=needed * 1.01).verdict == "PASS"
    tight = rejudge(path, k=needed * 0.99)
    assert tight.verdict == "FAIL"
    assert "times the limit" in tight.summary
    for k in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError):
            rejudge(path, k=k)


def test_a_subset_does_not_pass_for_the_whole(judge_torch: JudgeTorch, tmp_path: Path) -> None:
    report = judge_torch(only=["text_encoder"])
    assert (report.verdict, report.complete) == ("PASS", False)
    assert Artifact.open(tmp_path / "artifact").verified() is None
    faulty = judge_torch(only=["text_encoder"], after={"text_encoder": scaled(1.01)})
    assert faulty.verdict == "FAIL"
    assert Artifact.open(tmp_path / "artifact").verified() == "FAIL"


# Bad input


def test_report_of_a_newer_schema(judge_torch: JudgeTorch, tmp_path: Path) -> None:
    judge_torch(components=["text_encoder"])
    path = tmp_path / "artifact" / "verification" / "report.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"schema_version": 99}))
    with pytest.raises(ArtifactError, match=r"newer exporter \(report schema 99"):
        rejudge(path, k=4)
    path.write_text(json.dumps(data | {"surprise": 1}))
    with pytest.raises(ArtifactError, match="not a parity report: surprise"):
        rejudge(path, k=4)
    path.write_text("{")
    with pytest.raises(ArtifactError, match="JSON"):
        rejudge(path, k=4)
    with pytest.raises(ArtifactError, match="no report"):
        rejudge(tmp_path / "nowhere", k=4)


def test_artifact_without_its_source(judge_torch: JudgeTorch, tiny: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny, tmp_path / "source"))
    root = make_artifact(resolve(source), tmp_path / "artifact", components=["text_encoder"])
    shutil.rmtree(source)
    with pytest.raises(ArtifactError, match=r"made from .* which is not here"):
        judge_torch(root=root)
    assert judge_torch(root=root, against=str(tiny)).verdict == "PASS"
    with pytest.raises(CheckpointError):
        judge_torch(root=root, against=str(tmp_path / "elsewhere"))


def test_an_artifact_whose_component_is_missing(
    judge_torch: JudgeTorch, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    root = make_artifact(checkpoint, tmp_path / "artifact", components=["text_encoder", "unet"])
    shutil.rmtree(root / "unet")
    with pytest.raises(ArtifactError, match=r"changed after it was made: unet/\S+ \(\S+ is missing\)"):
        judge_torch(root=root)


def test_another_revision_of_the_source(
    judge_torch: JudgeTorch, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    root = make_artifact(checkpoint, tmp_path / "artifact", components=["text_encoder"])
    other = make_tiny(tmp_path / "other", seed=5)
    with pytest.raises(
        ArtifactError, match=r"is not what the artifact was made from: \S+safetensors differs"
    ):
        judge_torch(root=root, against=str(other))


def test_unknown_component_and_nonsense_settings(
    judge_torch: JudgeTorch, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    root = make_artifact(checkpoint, tmp_path / "artifact", components=["text_encoder"])
    for settings in ({"k": float("nan")}, {"k": 0}, {"steps": 0}, {"samples": 0}):
        with pytest.raises(UsageError):
            judge_torch(root=root, **settings)
    data = json.loads((root / MANIFEST).read_text())
    data["components"][0]["entry"] = "../elsewhere/model.onnx"
    (root / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match="outside the artifact"):
        judge_torch(root=root)
