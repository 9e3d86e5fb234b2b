"""Plans are honest, and a conversion that is stopped anywhere leaves nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from exporter import conversion, planning, verification
from exporter.artifact import Artifact
from exporter.errors import DestinationError, ResourceError, UnsupportedError, UsageError
from exporter.progress import NullProgress
from exporter.targets import get_target

pytest.importorskip("onnx")

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(source: Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "exporter", "convert", str(source), "--to", "onnx", "-o", str(out),
        "--json", *more,
    ]  # fmt: skip


def start(source: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(source, out, *more),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=heed_ctrl_c,
    )


def heed_ctrl_c() -> None:
    """A run in the background of a script ignores the signal, and its children would too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[bytes], seconds: float = 180) -> Path:
    """Wait for a file to appear while the process lives."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = sorted(folder.glob(pattern))
        if found:
            return found[0]
        if process.poll() is not None:
            raise AssertionError(f"the process ended early: {process.communicate()}")
        time.sleep(0.02)
    raise AssertionError(f"{pattern} did not appear")


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An artifact made without interruption."""
    out = tmp_path_factory.mktemp("whole") / "out"
    plan = conversion.make_plan(str(tiny), "onnx", out, {}, verify=False)
    return conversion.convert(plan).artifact


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_a_stopped_conversion_leaves_nothing_and_resumes(
    tiny: Path, tmp_path: Path, whole: Artifact, sign: signal.Signals
) -> None:
    out = tmp_path / "out"
    process = start(tiny, out, "--no-verify", "--no-cache")  # with it, the rest is done in no time
    wait_for(tmp_path, ".out.staging-*/.complete/text_encoder.json", process)
    process.send_signal(sign)
    process.wait()
    assert process.returncode == (130 if sign is signal.SIGINT else -9)
    assert not out.exists()

    again = subprocess.run(
        command(tiny, out, "--no-verify"), env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert "text_encoder" in json.loads(again.stdout)["resumed"]
    resumed = Artifact.open(out)
    assert resumed.changed_files() == []
    assert resumed.manifest.digest() == whole.manifest.digest(), "the same bytes as without the stop"
    assert [p.name for p in tmp_path.iterdir()] == ["out"], "no staging folder or lock is left"


class Airy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.airy_ai(x)


class WithAiry(nn.Module):
    """A VAE decoder with a step that no format knows."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.inner.odd_step = Airy()

    def forward(self, latent_sample: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.inner.odd_step(self.inner.decode(latent_sample, return_dict=False)[0]),)


def test_an_unsupported_operator_leaves_the_other_components_complete(tiny: Path, tmp_path: Path) -> None:
    names = ["text_encoder", "vae_decoder"]
    plan = conversion.make_plan(str(tiny), "onnx", tmp_path / "out", {}, components=names, verify=False)
    first, second = plan._components
    odd = replace(plan, _components=[first, replace(second, adapt=WithAiry)])
    with pytest.raises(UnsupportedError, match=r"vae_decoder.*special_airy_ai.*'odd_step'"):
        conversion.convert(odd)
    assert not (tmp_path / "out").exists()
    result = conversion.convert(plan)
    assert result.resumed == ("text_encoder",)
    assert [c.name for c in result.artifact.manifest.components] == names
    assert result.artifact.changed_files() == []


def test_two_conversions_into_one_folder(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = start(tiny, out, "--no-verify")
    wait_for(tmp_path, ".out.staging-*", first)
    first.send_signal(signal.SIGSTOP)  # or it is done before the second one has started
    second = subprocess.run(
        command(tiny, out, "--no-verify"), env=ENVIRONMENT, capture_output=True, text=True
    )
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    assert "Another exporter process is writing" in json.loads(second.stdout)["error"]["message"]
    assert "Traceback" not in second.stderr
    first.communicate()
    assert first.returncode == 0
    assert Artifact.open(out).changed_files() == []


def test_the_plan_is_close_to_what_is_written(tiny: Path, tmp_path: Path, whole: Artifact) -> None:
    plan = conversion.make_plan(str(tiny), "onnx", tmp_path / "out", {})
    written = sum(f.bytes for f in whole.manifest.all_files())
    assert [c.name for c in plan.components] == [c.name for c in whole.manifest.components]
    assert 0.5 * written < plan.disk < 4 * written
    assert any("sizes the export did not trace" in line for line in plan.verify)
    assert list(tmp_path.iterdir()) == [], "planning writes nothing"


def test_a_disk_that_is_too_small_is_said_before_the_work(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    plan = conversion.make_plan(str(tiny), "onnx", tmp_path / "out", {})
    with pytest.raises(ResourceError, match="Not enough disk"):
        conversion.convert(plan)
    assert list(tmp_path.iterdir()) == []


def test_memory_that_is_too_small_is_said_before_the_work(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "free_memory", lambda: 1_000_000)
    plan = conversion.make_plan(str(tiny), "onnx", tmp_path / "out", {})
    with pytest.raises(ResourceError, match="Not enough memory"):
        conversion.convert(plan)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"static": "1x64"}, "BATCHxHEIGHTxWIDTH"),
        ({"static": "0x64x64"}, "BATCHxHEIGHTxWIDTH"),
        ({"static": "1x60x64"}, "multiples of 8"),
        ({"dtype": "float8"}, "--dtype of target onnx"),
        ({"nonsense": 1}, "no option --nonsense"),
    ],
)
def test_bad_options(tiny: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        conversion.make_plan(str(tiny), "onnx", None, options)


def test_unknown_target_and_component(tiny: Path) -> None:
    with pytest.raises(UsageError, match="There is no target 'tflite'"):
        conversion.make_plan(str(tiny), "tflite")
    with pytest.raises(UsageError, match="no component 'decoder'"):
        conversion.make_plan(str(tiny), "onnx", components=["decoder"])


def test_the_manifest_tells_the_whole_story(whole: Artifact, tiny: Path) -> None:
    manifest = whole.manifest
    assert manifest.verification is None and manifest.verification_skipped
    assert manifest.source.source == str(tiny)
    assert {f.path for f in manifest.source.files} >= {"unet/diffusion_pytorch_model.safetensors"}
    on_disk = {p.relative_to(whole.root).as_posix() for p in whole.root.rglob("*") if p.is_file()}
    assert on_disk - {"exporter.json"} == {f.path for f in manifest.all_files()}, "every byte is listed"
    assert manifest.tools["torch"] and manifest.tools["exporter"]


def test_progress_is_reported_for_every_component(tiny: Path, tmp_path: Path) -> None:
    labels: list[str] = []

    class Recorder(NullProgress):
        def start(self, label: str, total: float | None = None) -> None:
            labels.append(label)

    plan = conversion.make_plan(
        str(tiny), "onnx", tmp_path / "out", {}, components=["vae_decoder"], verify=False
    )
    conversion.convert(plan, progress=Recorder())
    assert any("vae_decoder" in label for label in labels)


def test_a_verifier_that_was_killed_is_told_from_one_that_stopped() -> None:
    assert "memory" in verification.how_it_ended(-signal.SIGKILL, "a warning of some library\n")
    assert "Segmentation fault" in verification.how_it_ended(-signal.SIGSEGV, "a warning of some library\n")
    assert verification.how_it_ended(1, "Traceback\nValueError: no\n") == "ValueError: no"
    where = '  File "/a/exporter/parity/cases.py", line 7, in made\n  File "/b/torch/x.py", line 9, in y\n'
    said = verification.how_it_ended(1, f"Traceback\n{where}ValueError: no\n")
    assert said == "ValueError: no, at exporter/parity/cases.py line 7"
    assert verification.how_it_ended(3, "") == "exit status 3"


def test_a_native_crash_is_told_with_the_call_that_made_it() -> None:
    frames = "Current thread 0x00007f (most recent call first):\n"
    inside = (
        '  File "/a/site-packages/openvino/_ov_api.py", line 646 in compile_model\n  File "/b", line 1 in c\n'
    )
    errors, known = f"Fatal Python error: Floating point exception\n\n{frames}{inside}", {}
    said = verification.how_it_ended(-signal.SIGFPE, errors, known)
    assert said.endswith("Floating point exception, in compile_model of openvino")
    known = get_target("openvino").crashes
    said = verification.how_it_ended(-signal.SIGFPE, errors, known)
    assert "Floating point exception, in compile_model of openvino; " in said and "ONEDNN_MAX_CPU_ISA" in said
    assert "ONEDNN" not in verification.how_it_ended(-signal.SIGSEGV, errors, known)
    crash = "import faulthandler, os, signal; faulthandler.enable(); os.kill(os.getpid(), signal.SIGSEGV)"
    ended = subprocess.run([sys.executable, "-c", crash], capture_output=True, text=True)
    assert ", in <module> of" in verification.how_it_ended(ended.returncode, ended.stderr)


def test_a_plan_that_was_refused_once_can_be_carried_out(tiny: Path, tmp_path: Path) -> None:
    """What was hashed aside is given up with the refusal, and taken again."""
    out = tmp_path / "out"

    def plan() -> planning.Plan:
        return planning.make_plan(
            str(tiny), "safetensors", out, components=["vae_decoder"], verify=False, hash_source=True
        )

    conversion.convert(plan())
    again = plan()
    with pytest.raises(DestinationError):
        conversion.convert(again)
    sources = conversion.convert(again, overwrite=True).artifact.manifest.source.files
    assert sources == again._checkpoint.files and len(sources) > 4
