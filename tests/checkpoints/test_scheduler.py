"""`--scheduler`: another scheduler in the place of the checkpoint's."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from exporter import pipeline
from exporter.architectures import components_of
from exporter.artifact import Artifact
from exporter.checkpoints import open_source
from exporter.checkpoints.overlays import lay_again
from exporter.checkpoints.overlays.scheduler import DIFFUSION, FLOW, class_of
from exporter.conversion import convert, make_plan
from exporter.errors import CheckpointError, UsageError
from exporter.parity import verify
from exporter.parity.sources import reference_for
from exporter.targets.openvino.schedulers import NEAREST, SUPPORTED


@pytest.mark.parametrize("name", [*DIFFUSION, *FLOW])
def test_every_name_is_a_class_of_diffusers(name: str) -> None:
    import diffusers

    assert class_of(name) == f"{name}Scheduler" == class_of(f"{name}Scheduler")
    assert isinstance(getattr(diffusers, f"{name}Scheduler"), type)


@pytest.mark.parametrize(
    ("short", "name"),
    [
        ("euler", "EulerDiscreteScheduler"),
        ("euler-a", "EulerAncestralDiscreteScheduler"),
        ("euler_ancestral", "EulerAncestralDiscreteScheduler"),
        ("DPM-Solver", "DPMSolverMultistepScheduler"),
        ("unipc", "UniPCMultistepScheduler"),
        ("lms", "LMSDiscreteScheduler"),
        ("lcm", "LCMScheduler"),
    ],
)
def test_short_names(short: str, name: str) -> None:
    assert class_of(short) == name


def test_settings_are_kept_and_weights_are_not_touched(tiny: Path) -> None:
    plain, swapped = open_source(tiny), open_source(tiny, scheduler="euler")
    config = swapped.config("scheduler")
    assert config["_class_name"] == "EulerDiscreteScheduler"
    assert (config["beta_start"], config["beta_schedule"], config["steps_offset"]) == (
        0.00085, "scaled_linear", 1,
    )  # fmt: skip
    assert "set_alpha_to_one" not in config  # DDIM's own
    assert open_source(tiny, scheduler="pndm").config("scheduler")["skip_prk_steps"] is True
    assert swapped.component_classes["scheduler"] == ("diffusers", "EulerDiscreteScheduler")
    assert swapped.files == plain.files
    digests = [[c.weights_digest for c in components_of(each)] for each in (plain, swapped)]
    assert digests[0] == digests[1]
    (record,) = swapped.overlays
    assert (record.kind, record.source) == ("scheduler", "EulerDiscreteScheduler")
    assert record.details == {"replaces": "DDIMScheduler", "prediction_type": "epsilon"}
    assert lay_again(plain, swapped.overlays).config("scheduler") == config


@pytest.mark.parametrize("name", [name for name in DIFFUSION if name != "TCD"])
def test_every_scheduler_paints(tiny: Path, name: str) -> None:
    """diffusers' own pipeline runs with each, at two steps."""
    loaded = pipeline.load(tiny, scheduler=name)
    assert type(loaded.scheduler).__name__ == f"{name}Scheduler"
    (picture,) = pipeline.paint(loaded, ["a star"], steps=2, height=16, width=16)
    assert picture.size == (16, 16)


def test_names_that_mean_nothing(tiny: Path) -> None:
    with pytest.raises(UsageError, match="no scheduler 'karras'; there is: DDIM, DDPM"):
        open_source(tiny, scheduler="karras")


def test_a_flow_scheduler_for_a_model_that_predicts_noise(tiny: Path) -> None:
    with pytest.raises(UsageError, match="predicts noise, the scheduler wants the velocity of a flow"):
        open_source(tiny, scheduler="flow-match-euler")


def changed(tiny: Path, folder: Path, **settings: object) -> Path:
    shutil.copytree(tiny, folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def test_a_prediction_that_a_scheduler_cannot_use(tiny: Path, tmp_path: Path) -> None:
    source = changed(tiny, tmp_path / "sample", prediction_type="sample")
    with pytest.raises(UsageError, match="PNDMScheduler does not go with a model that predicts 'sample'"):
        open_source(source, scheduler="pndm")
    assert open_source(source, scheduler="ddpm").config("scheduler")["prediction_type"] == "sample"
    source = changed(tiny, tmp_path / "v", prediction_type="v_prediction")
    assert open_source(source, scheduler="euler").config("scheduler")["prediction_type"] == "v_prediction"


def test_a_checkpoint_without_scheduler(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "none"
    shutil.copytree(tiny, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": [None, None]}))
    with pytest.raises(CheckpointError, match="has no scheduler that --scheduler could replace"):
        open_source(folder, scheduler="euler")


def test_it_is_converted_recorded_and_judged(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    plan = make_plan(
        str(tiny), "onnx", tmp_path / "out", intake={"scheduler": "dpm-solver"}, components=["vae_decoder"]
    )
    assert plan.overlays[0]["source"] == "DPMSolverMultistepScheduler"
    root = convert(replace(plan, verify=[])).artifact.root
    judged = verify(root, steps=2, samples=1, prompts=["a star"])
    assert judged.verdict == "PASS", judged.summary
    config = json.loads((root / "scheduler" / "scheduler_config.json").read_text())
    index = json.loads((root / "model_index.json").read_text())
    assert config["_class_name"] == index["scheduler"][1] == "DPMSolverMultistepScheduler"
    report = json.loads((root / "verification" / "report.json").read_text())
    assert report["pipeline"]["scheduler"] == "DPMSolverMultistepScheduler"
    reference = reference_for(Artifact.open(root), None)
    assert reference.component_classes["scheduler"][1] == "DPMSolverMultistepScheduler"


def test_genai_reads_what_is_said_to_be_supported(tmp_path: Path) -> None:
    """Every name of the list is opened by the installed GenAI, and every one that has a nearest is not."""
    genai = pytest.importorskip("openvino_genai")
    import diffusers

    def opens(name: str) -> bool:
        path = tmp_path / name / "scheduler_config.json"
        getattr(diffusers, name)().save_pretrained(path.parent)
        try:
            genai.Scheduler.from_config(path)
        except RuntimeError:
            return False
        return True

    assert [name for name in SUPPORTED if not opens(name)] == []
    optional = {"DPMSolverSDEScheduler"}  # needs a package of its own to be made
    assert [name for name in NEAREST if name not in optional and opens(name)] == []
    assert set(NEAREST.values()) <= set(SUPPORTED)


def test_what_genai_lacks_is_told_before_the_export(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    plan = make_plan(str(tiny), "openvino", tmp_path / "out", intake={"scheduler": "unipc"})
    told = [note for note in plan.notes if "GenAI has no UniPCMultistepScheduler" in note]
    assert told and told[0].endswith("convert with --scheduler DDIMScheduler")
    plain = make_plan(str(tiny), "openvino", tmp_path / "out")
    assert not any("GenAI" in note for note in plain.notes)
