"""AOTInductor packages: compiled for real, judged like the rest, and refused where they were not made for."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from exporter import parity
from exporter.architectures import components_of
from exporter.artifact import Artifact
from exporter.checkpoints import resolve
from exporter.errors import ArtifactError, BackendMissing
from exporter.targets.pt2.compile import lacking
from tests.cli.runner import invoke
from tests.targets.pt2.archives import edit_json, flip_bytes, needs_compiler, runner

PATH = Path("text_encoder") / "model.pt2"


@pytest.fixture
def copy(compiled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compiled, tmp_path / "copy"))


def made_for(root: Path, **changed: str) -> None:
    edit_json(root / PATH, "extra/exporter.json", lambda data: data["compiled"].update(changed))


@needs_compiler
def test_a_package_passes_at_other_sizes_than_it_was_compiled_at(compiled: Path) -> None:
    report = parity.verify(compiled, steps=1, samples=1, pipeline=False)
    (part,) = report.components
    assert part.verdict == "PASS", report.summary
    assert {"captured", "batch", "sequence"} <= {case.kind for run in part.runs for case in run.cases}


@needs_compiler
def test_the_manifest_says_where_it_runs(compiled: Path) -> None:
    details = Artifact.open(compiled).manifest.component("text_encoder").details
    assert details["kind"] == "AOTInductor package"
    assert (details["device"], details["torch"]) == ("cpu", torch.__version__)
    assert details["isa"] and lacking(details["isa"], torch.device("cpu")) == []
    assert sorted(p.name for p in (compiled / PATH).parent.iterdir()) == ["config.json", "model.pt2"]


@needs_compiler
def test_a_size_outside_the_ranges_never_reaches_the_machine_code(compiled: Path, tiny: Path) -> None:
    part = next(c for c in components_of(resolve(str(tiny))) if c.name == "text_encoder")
    inputs = part.example_inputs(replace(part.native, sequence=78))
    with runner(compiled, "text_encoder") as opened:
        assert opened.module_names() == []
        with pytest.raises(RuntimeError, match=r"sequence is 78 in input .*takes 1 to 77"):
            opened.run({name: value.numpy() for name, value in inputs.items()})
        with pytest.raises(ValueError, match="declared int64"):
            opened.run({"input_ids": np.zeros((1, 7), np.float32)})


@needs_compiler
@pytest.mark.parametrize(
    ("changed", "error", "match", "code"),
    [
        ({"torch": "2.1.0"}, ArtifactError, "compiled by torch 2.1.0; this is torch", 3),
        ({"isa": "avx512f amxtile9"}, BackendMissing, "compiled for avx512f amxtile9; this cpu has no", 4),
        ({"machine": "s390x"}, BackendMissing, "compiled for s390x; this machine is", 4),
    ],
)
def test_another_machine_is_told_so(
    copy: Path, changed: dict[str, str], error: type[Exception], match: str, code: int
) -> None:
    made_for(copy, **changed)
    with pytest.raises(error, match=match) as caught:
        runner(copy, "text_encoder")
    assert caught.value.exit_code == code and "--compile" in caught.value.hint  # type: ignore[attr-defined]


@needs_compiler
def test_another_device_is_told_so(copy: Path) -> None:
    made_for(copy, device="cuda")
    with pytest.raises(BackendMissing, match="compiled for the device cuda, not for cpu"):
        runner(copy, "text_encoder", device="cpu")


@needs_compiler
def test_a_damaged_library(copy: Path) -> None:
    flip_bytes(copy / PATH, ".so")
    with pytest.raises(ArtifactError, match=r"text_encoder/model\.pt2 is damaged \(.*\.so\)"):
        runner(copy, "text_encoder")


def test_without_a_compiler_nothing_is_begun(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = invoke("convert", tiny, "--to", "pt2", "--compile", "-o", tmp_path / "out")
    ran.failed(4, "needs a C++ compiler", "Install g++")
    assert not (tmp_path / "out").exists()


def test_a_device_without_compiling_makes_no_sense(tiny: Path, tmp_path: Path) -> None:
    invoke("convert", tiny, "--to", "pt2", "--option", "device=cuda", "-o", tmp_path / "out").failed(
        2, "only chosen for a compiled package"
    )
