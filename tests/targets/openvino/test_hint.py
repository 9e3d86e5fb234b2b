"""`--precision-hint`: in the manifest, and what `exporter run` asks OpenVINO for."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

pytest.importorskip("openvino")

import openvino

from exporter import pipeline
from exporter.artifact import Artifact
from exporter.bench import Entrant, Settings
from exporter.bench.worker import Worker
from exporter.conversion import convert, make_plan
from exporter.errors import UsageError
from tests.cli.runner import invoke

HAS_BF16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hint") / "out"
    return convert(
        make_plan(str(tiny), "openvino", out, {"precision_hint": "bf16"}, verify=False)
    ).artifact.root


def used(root: Path, **options: str) -> set[str | None]:
    loaded = pipeline.load(root, **options)
    return {loaded.unet.runner.precision, loaded.vae.runner.precision}


def test_it_is_recorded(made: Path) -> None:
    manifest = Artifact.open(made).manifest
    assert manifest.options["precision_hint"] == "bf16"
    assert {c.details["precision_hint"] for c in manifest.components} == {"bf16"}


@pytest.mark.skipif(not HAS_BF16, reason="this processor has no bfloat16")
def test_run_honours_it_unless_told_otherwise(made: Path) -> None:
    """What the compiled kernels compute in, not what was asked for."""
    assert used(made) == {"bfloat16"}
    assert used(made, precision_hint="f32") == {"float32"}


@pytest.mark.skipif(not HAS_BF16, reason="this processor has no bfloat16")
def test_the_pictures_differ_as_the_arithmetic_does(made: Path, tmp_path: Path) -> None:
    pictures = []
    for hint in ((), ("--precision-hint", "bf16"), ("--precision-hint", "f32")):
        path = tmp_path / f"{len(pictures)}.png"
        assert invoke("run", made, "a star", "-o", path, "--steps", "2", *hint).code == 0
        pictures.append(path.read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_bench_states_it(made: Path) -> None:
    assert (
        Worker().open(asdict(Entrant(str(made))), asdict(Settings(prompt="a star")))["precision_hint"]
        == "bf16"
    )


def test_a_hint_that_does_not_exist(made: Path, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--precision-hint of target openvino"):
        make_plan(str(tiny), "openvino", tmp_path / "out", {"precision_hint": "f64"})
    with pytest.raises(UsageError, match="'f64' is none of f32, bf16, f16, default"):
        pipeline.load(made, precision_hint="f64")


def test_a_manifest_of_another_hint_is_seen_by_run(made: Path, tmp_path: Path) -> None:
    """The manifest decides, so a recorded `default` is left to OpenVINO."""
    import shutil

    root = tmp_path / "out"
    shutil.copytree(made, root)
    path = root / "exporter.json"
    manifest = json.loads(path.read_text())
    for component in manifest["components"]:
        component["details"]["precision_hint"] = "f32"
    path.write_text(json.dumps(manifest))
    assert used(root) == {"float32"}
