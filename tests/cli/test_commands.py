"""The verbs at work on a real artifact, as a user sees them."""

from __future__ import annotations

import inspect
import json
import signal
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from exporter.artifact import Artifact
from exporter.cli import cli
from tests.cli.conftest import Converted
from tests.cli.runner import environment, invoke, spawn

PROMPT = "a large red star"
COMPONENTS = ["text_encoder", "unet", "vae_decoder", "vae_encoder"]


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_convert_prints_one_document_and_nothing_else(converted: Converted) -> None:
    ran = converted.ran
    assert ran.code == 0, ran
    assert ran.stderr == ""
    document = ran.document
    assert document["verdict"] == "PASS"
    assert document["artifact"] == str(converted.root)
    assert [c["name"] for c in document["components"]] == COMPONENTS
    assert Path(document["report"]).is_file()
    manifest = Artifact.open(converted.root).manifest
    assert document["bytes"] == sum(file.bytes for file in manifest.all_files())


def test_a_second_convert_does_not_overwrite(tiny: Path, converted: Converted) -> None:
    before = (converted.root / "exporter.json").read_bytes()
    ran = invoke("convert", tiny, "--to", "openvino", "-o", converted.root)
    ran.failed(2, "exists already", "--overwrite")
    assert (converted.root / "exporter.json").read_bytes() == before


def test_dry_run_is_a_plan_and_writes_nothing(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    ran = invoke("convert", tiny, "--to", "openvino", "-o", output, "--dry-run", "--json")
    plan = ran.document
    assert ran.code == 0
    assert [c["name"] for c in plan["components"]] == COMPONENTS
    assert plan["disk"] == sum(c["disk"] for c in plan["components"]) > 0
    assert plan["memory"] > 0 and plan["free_disk"] > 0 and plan["verify"]
    people = invoke("convert", tiny, "--to", "openvino", "-o", output, "--dry-run", "--no-verify").stdout
    assert "will not be verified" in people and "unet" in people
    assert (
        invoke("convert", tiny, "--to", "openvino", "-o", output, "--dry-run", "-q").stdout == f"{output}\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_options_reach_the_target(tiny: Path, tmp_path: Path) -> None:
    common = ("convert", tiny, "--to", "openvino", "-o", tmp_path / "out", "--dry-run", "--json")
    options = invoke(*common, "--static", "1x64x64", "--dtype", "float16", "--precision-hint", "bf16")
    assert options.document["options"] | {"static": [1, 64, 64]} == options.document["options"]
    assert options.document["options"]["dtype"] == "float16"
    assert options.document["options"]["precision_hint"] == "bf16"
    named = invoke(*common, "--option", "precision-hint=f16").document
    assert named["options"]["precision_hint"] == "f16"
    one = invoke(*common, "--component", "unet").document
    assert [c["name"] for c in one["components"]] == ["unet"]


def test_inspect_an_artifact(converted: Converted, artifact: Path) -> None:
    ran = invoke("inspect", converted.root)
    assert ran.code == 0 and "is verified: PASS" in ran.stdout
    assert invoke("inspect", converted.root, "-q").stdout.split() == COMPONENTS
    document = invoke("inspect", converted.root, "--json").document
    assert document["state"]["verdict"] == "PASS" and document["target"] == "openvino"
    (artifact / "unet/openvino_model.bin").unlink()
    ran = invoke("inspect", artifact, "--json")
    assert ran.code == 3 and ran.document["state"]["verdict"] is None
    assert "unet/openvino_model.bin" in ran.document["state"]["changed"]


def test_inspect_a_checkpoint(tiny: Path) -> None:
    ran = invoke("inspect", tiny)
    assert ran.code == 0
    for part in (*COMPONENTS, "UNet2DConditionModel", "float32", "encoder_hidden_states", "792,964"):
        assert part in ran.stdout


def test_check_hashes(converted: Converted, artifact: Path) -> None:
    ran = invoke("verify", converted.root, "--check-hashes", "-q")
    assert (ran.code, ran.stdout) == (0, "PASS\n")
    flip_a_byte(artifact / "unet/openvino_model.bin")
    ran = invoke("verify", artifact, "--check-hashes")
    assert ran.code == 5
    assert "changed: unet/openvino_model.bin" in ran.stdout and "unverified" in ran.stdout


def test_verify_refuses_changed_bytes(artifact: Path) -> None:
    flip_a_byte(artifact / "unet/openvino_model.bin")
    invoke("verify", artifact).failed(3, "unet/openvino_model.bin")


def test_rejudge_decides_the_exit_code(converted: Converted) -> None:
    report = converted.root / "verification/report.json"
    again = invoke("verify", "--rejudge", report)
    assert again.code == 0 and "PASS" in again.stdout
    strict = invoke("verify", "--rejudge", report, "--k", "1e-9", "--json")
    assert strict.code == 1 and strict.document["verdict"] == "FAIL"
    assert invoke("verify", "--rejudge", report, "--k", "1e-9", "-q").stdout == "FAIL\n"
    people = invoke("verify", converted.root, "--rejudge", report, "--k", "1e-9")
    assert people.code == 1 and "unet" in people.stdout


def test_rejudge_what_could_not_be_checked(converted: Converted, tmp_path: Path) -> None:
    report = json.loads((converted.root / "verification/report.json").read_text())
    report["components"][1]["not_checked"] = "there is no such device here"
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    ran = invoke("verify", "--rejudge", path)
    assert ran.code == 5
    assert "INCONCLUSIVE" in ran.stdout and "there is no such device here" in ran.stdout


def test_verify_without_anything_to_judge(tmp_path: Path) -> None:
    invoke("verify").failed(2, "ARTIFACT")
    invoke("verify", tmp_path, "--check-hashes", "--rejudge", tmp_path).failed(2, "--rejudge")
    invoke("verify", "--rejudge", tmp_path / "none.json").failed(3, "none.json")


def test_verify_one_component_with_prompts_and_a_report_elsewhere(
    converted: Converted, artifact: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# one\na blue square\n\n")
    ran = invoke(
        "verify", artifact, "--component", "vae_decoder", "--no-pipeline", "--prompts", prompts,
        "--steps", 2, "--samples", 1, "--report", tmp_path / "report", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran
    assert ran.document["settings"]["prompts"] == ["a blue square"]
    assert [c["name"] for c in ran.document["components"]] == ["vae_decoder"]
    assert (tmp_path / "report/report.html").is_file()


def test_run_paints_the_reference_and_says_what_is_verified(
    converted: Converted, artifact: Path, tiny: Path, tmp_path: Path
) -> None:
    def paint(source: Path, name: str) -> tuple[np.ndarray, str, str]:
        picture = tmp_path / name
        ran = invoke("run", source, PROMPT, "-o", picture, "--seed", 7, "--steps", 3)
        assert ran.code == 0, ran
        with Image.open(picture) as image:
            assert image.size == (64, 64)
            return np.asarray(image.convert("RGB"), np.float64), ran.stdout, ran.stderr

    reference, stdout, stderr = paint(tiny, "reference.png")
    assert str(tmp_path / "reference.png") in stdout and "verified" not in stderr
    exported, _, stderr = paint(converted.root, "exported.png")
    assert "is verified: PASS" in stderr
    assert np.abs(reference - exported).max() <= 1  # at most one rounding step of 8 bits
    with (artifact / "tokenizer/tokenizer_config.json").open("a") as config:
        config.write("\n")  # harmless, but no longer what was verified
    _, _, stderr = paint(artifact, "changed.png")
    assert "Warning: " in stderr and "unverified" in stderr and "tokenizer_config.json" in stderr


@pytest.mark.parametrize(
    "file", ["tokenizer/vocab.json", "unet/openvino_model.xml", "scheduler/scheduler_config.json"]
)
def test_run_a_damaged_artifact(artifact: Path, tmp_path: Path, file: str) -> None:
    (artifact / file).write_bytes((artifact / file).read_bytes()[:40])
    ran = invoke("run", artifact, PROMPT, "-o", tmp_path / "star.png", "--steps", 2)
    ran.failed(3)
    assert file.rpartition("/")[2] in ran.stderr or file.partition("/")[0] in ran.stderr


def test_run_under_json(converted: Converted, tmp_path: Path) -> None:
    picture = tmp_path / "star.webp"
    ran = spawn("run", converted.root, PROMPT, "-o", picture, "--steps", 2, "--json")
    assert ran.code == 0 and ran.stderr == ""
    assert ran.document["picture"] == str(picture) and ran.document["verified"] == "PASS"
    with Image.open(picture) as image:
        assert image.format == "WEBP"


def test_doctor() -> None:
    ran = spawn("doctor", "--json")
    assert ran.code == 0 and ran.stderr == ""
    document = ran.document
    assert document["ok"] and document["hardware"]["cores"] >= 1
    assert {t["name"] for t in document["targets"]} >= {"onnx", "openvino"}
    people = invoke("doctor")
    assert people.code == 0 and "torch" in people.stdout and "openvino" in people.stdout


def test_doctor_without_a_core_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError

    from exporter import doctor

    real = doctor.version

    def version(name: str) -> str:
        if name == "diffusers":
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(doctor, "version", version)
    ran = invoke("doctor")
    assert ran.code == 4
    assert "pip install exporter" in ran.stdout and "diffusers" in ran.stdout


def heed_ctrl_c() -> None:
    """A run in the background of a script ignores the signal, and its children would too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_leaves_nothing_at_the_destination(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-m", "exporter", "convert", str(tiny), "--to", "openvino", "-o", str(output)]
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        preexec_fn=heed_ctrl_c,
    )
    assert child.stderr is not None
    first = child.stderr.readline()
    assert "text_encoder" in first  # the work has begun
    child.send_signal(signal.SIGINT)
    stdout, stderr = child.communicate(timeout=120)
    assert child.returncode == 130, stderr
    assert stdout == ""
    assert "Interrupted." in stderr and "Traceback" not in stderr
    assert not output.exists()


def test_a_reader_that_leaves_is_no_error(tiny: Path) -> None:
    shell = f"{sys.executable} -m exporter inspect {tiny} --json; echo code $? >&2"
    child = subprocess.Popen(
        ["sh", "-c", f"({shell}) | true"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    _, stderr = child.communicate(timeout=120)
    assert "Traceback" not in stderr and "BrokenPipe" not in stderr and "Exception ignored" not in stderr
    assert stderr.strip() == "code 141"


def test_the_defaults_shown_are_those_of_the_library() -> None:
    from exporter import parity, pipeline

    def defaults(name: str) -> dict[str, object]:
        command = cli.get_command(click.Context(cli, **cli.context_settings), name)
        assert command is not None
        return {p.name or "": p.default for p in command.params if isinstance(p, click.Option)}

    for name, function, shown in (
        ("verify", parity.verify, ("k", "steps", "samples", "seed")),
        ("run", pipeline.paint, ("seed", "steps", "guidance")),
    ):
        signature = inspect.signature(function).parameters
        for option in shown:
            assert defaults(name)[option] == signature[option].default, (name, option)
    assert "4]" in next(
        p.help or ""
        for p in cli.get_command(click.Context(cli, **cli.context_settings), "convert").params
        if p.name == "k"  # type: ignore[union-attr]
    )
    assert inspect.signature(parity.verify).parameters["k"].default == 4.0
