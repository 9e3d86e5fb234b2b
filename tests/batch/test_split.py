"""A cell in parts is the same artifact, byte for byte, as the cell as a whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exporter import batch
from exporter.artifact import Artifact
from exporter.batch import Job, Matrix, Row
from exporter.batch.split import WEIGHT, Line, settle
from exporter.errors import ResourceError
from tests.batch.matrices import attempts
from tests.cli.runner import invoke

pytest.importorskip("onnx")
PARTS = ["text_encoder", "unet", "vae"]


def matrix(folder: Path, tiny: Path, recipe: str, more: str = "split: always\n") -> Path:
    """One cell `t-r` of all components of the tiny model."""
    (folder / "r.yaml").write_text(f"name: r\nmodel: builtin:shapes\nverify: {{enabled: false}}\n{recipe}")
    path = folder / "m.yaml"
    path.write_text(f"name: m\nmodels:\n  - model: {tiny}\n    name: t\nrecipes: [r.yaml]\n{more}")
    return path


def told(artifact: Artifact) -> dict[str, Any]:
    """The manifest without what differs from one conversion to the next: times."""
    manifest: dict[str, Any] = json.loads(artifact.manifest.model_dump_json())
    manifest.pop("created")
    for component in manifest["components"]:
        component.pop("seconds")
    return manifest


class Seen(batch.NoWatcher):
    """Notes what is begun and what ends; interrupts once, when the first part has."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.stopped = False

    def started(self, row: Row) -> None:
        self.events.append(f"begun {row.id}")

    def ended(self, row: Row) -> None:
        self.events.append(f"ended {row.id}")
        if not self.stopped:
            self.stopped = True
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "recipe",
    [
        "target: onnx\n",
        pytest.param("target: openvino\n", marks=pytest.mark.full),
        pytest.param("target: safetensors\n", marks=pytest.mark.full),
        pytest.param("target: onnx\ntechniques: [deep-cache]\n", marks=pytest.mark.full),
        pytest.param("target: onnx\noptions: {dtype: float16}\n", marks=pytest.mark.full),
        pytest.param("target: onnx\noptions: {naming: transformers.js}\n", marks=pytest.mark.full),
        pytest.param("target: pt2\n", marks=pytest.mark.full),
        pytest.param("target: stablehlo\n", marks=pytest.mark.full),
        pytest.param("target: coreml\n", marks=pytest.mark.full),
    ],
    ids=[
        "onnx",
        "openvino",
        "safetensors",
        "deep-cache",
        "float16",
        "transformers.js",
        "pt2",
        "hlo",
        "coreml",
    ],
)
def test_a_cell_in_parts_is_the_same_artifact(tiny: Path, tmp_path: Path, recipe: str) -> None:
    if "openvino" in recipe:
        pytest.importorskip("openvino")
    one, many, seen = tmp_path / "one", tmp_path / "many", Seen()
    summary = batch.run(matrix(tmp_path, tiny, recipe, ""), one)
    assert summary.exit_code == 0 and summary.rows[0].parts == [] and summary.rows[0].split == ""
    with pytest.raises(KeyboardInterrupt):
        batch.run(matrix(tmp_path, tiny, recipe), many, slots=1, watcher=seen)
    (made,) = (many / ".batch" / "parts" / "t-r").glob("*/*")
    assert seen.events == [f"begun t-r@{made.name}", f"ended t-r@{made.name}"]
    summary = batch.run(matrix(tmp_path, tiny, recipe), many, watcher=seen)
    (row,) = summary.rows
    assert row.error is None and row.state == "done", row
    assert {part.part: part.state for part in row.parts} == dict.fromkeys(PARTS, "done") | {made.name: "kept"}
    assert seen.events.index("begun t-r") > max(seen.events.index(f"ended t-r@{part}") for part in PARTS)

    whole, parted = Artifact.open(one / "t-r"), Artifact.open(many / "t-r")
    assert {f.path: f.sha256 for f in parted.manifest.all_files()} == {
        f.path: f.sha256 for f in whole.manifest.all_files()
    }
    assert parted.changed_files() == [] and told(parted) == told(whole)
    assert not (many / ".batch" / "parts").exists(), "parts are left"
    assert [p.name for p in many.iterdir() if p.name.startswith(".")] == [".batch"]
    page = (many / "index.html").read_text()
    assert all(f"t-r@{part}" in page for part in PARTS)

    again = batch.run(matrix(tmp_path, tiny, recipe), many)
    assert again.rows[0].state == "kept" and [part.part for part in again.rows[0].parts] == PARTS
    far = batch.run(matrix(tmp_path, tiny, recipe), many, collect=(tmp_path / "far").as_uri())
    assert far.rows[0].collected and far.rows[0].error is None, "made in parts, and collected as a whole"
    assert Artifact.open(tmp_path / "far" / "t-r").changed_files() == []
    assert all(attempts(many, f"t-r@{part}") == ["begun", "done"] for part in PARTS)


def test_the_rule_of_auto() -> None:
    def cell(*disks: int, memory: int = 3, judging: int = 2) -> Job:
        job = Job(row("c", memory), None, Path("c"), judging=judging)  # type: ignore[arg-type]
        for number, disk in enumerate(disks):
            job.parts.append(Job(row(f"c@{number}", 1, disk), None, Path("p"), whole=job))  # type: ignore[arg-type]
        return job

    def row(name: str, memory: int, disk: int = 0) -> Row:
        return Row(id=name, model="", recipe="", target="onnx", memory=memory, disk=disk)

    def settled(job: Job, mode: str = "auto", cells: int = 1, **cluster: int) -> str:
        settle([job, *(cell() for _ in range(cells - 1))], mode, **cluster)
        assert bool(job.parts) == bool(job.row.parts) == job.row.split.startswith("split")
        assert job.row.memory == (2 if job.parts else 3)
        return job.row.split

    big, small = WEIGHT, WEIGHT - 1
    assert settled(cell(big, big), slots=2, largest=9) == "split: 2 cores for 1 cell"
    assert settled(cell(big, big), slots=2, largest=9, cells=2) == "", "no core would be idle"
    assert settled(cell(big, small), slots=9, largest=9) == "", "one part has all the weight"
    assert "more than any node gives" in settled(cell(big, big), slots=1, largest=2)
    assert settled(cell(big, big), slots=1, largest=1) == "", "what puts it together fits none either"
    assert settled(cell(big, big)) == "", "without a cluster"
    assert settled(cell(small, small), "always") == "split: as the matrix says"
    assert settled(cell(big, big), "never", slots=2, largest=9) == ""
    unshared = cell(big, big)
    settle([unshared], "apart", slots=9, largest=9)
    assert not unshared.parts and unshared.row.split.startswith("whole: not every node sees")
    begun = cell(small, small)
    begun.parts[0].row.state = "kept"
    assert settled(begun, slots=1, largest=9) == "split: parts of it are there from an earlier run"
    heavy = cell(judging=8)
    settle([heavy], "never", slots=1, largest=9)
    assert heavy.row.memory == 8, "on a cluster it is placed by what its verification takes"


def test_a_part_that_fails_fails_its_cell_when_the_others_have_ended() -> None:
    def job(name: str, whole: Job | None = None) -> Job:
        row = Row(id=name, model="", recipe="", target="onnx", part=name if whole else None)
        return Job(row, None, Path(name), whole=whole)  # type: ignore[arg-type]

    cell, other = job("c"), job("d")
    cell.parts = [job("unet", cell), job("vae", cell)]
    line = Line([cell, other])
    assert [each.row.id for each in line.first()] == ["unet", "vae", "d"]
    unet, vae = cell.parts
    unet.row.fail(ResourceError("Not enough memory.", hint="More."))
    assert line.after(unet) == [] and line.after(other) == []
    vae.row.state = "done"
    assert line.after(vae) == [cell] and cell.row.exit_code == 6
    assert (
        cell.row.error is not None and "part unet was not made: Not enough memory" in cell.row.error.message
    )
    unet.row.error, unet.row.state, cell.row.error = None, "kept", None
    assert line.after(vae) == [cell] and cell.row.error is None


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ("target: torchscript\n", "other bytes"),
        ("target: onnx\noptions: {dtype: float16}\nverify: {enabled: true}\n", "float16"),
        ("target: onnx\ncomponents: [vae_decoder, vae_encoder]\n", "one folder"),
        ("target: openvino\noptions: {weights: int8, activations: int8}\n", "calibrated"),
    ],
)
def test_what_is_kept_whole_says_why(tiny: Path, tmp_path: Path, recipe: str, why: str) -> None:
    if "openvino" in recipe:
        pytest.importorskip("nncf")
    text = recipe if "enabled" in recipe else f"{recipe}verify: {{enabled: false}}\n"
    (tmp_path / "r.yaml").write_text(f"name: r\nmodel: builtin:shapes\n{text}")
    path = tmp_path / "m.yaml"
    path.write_text(f"name: m\nmodels:\n  - {{model: {tiny}, name: t}}\nrecipes: [r.yaml]\nsplit: always\n")
    ran = invoke("batch", path, "-o", tmp_path / "out", "--dry-run", "--json")
    (row,) = ran.document["rows"]
    assert row["split"].startswith("whole: ") and why in row["split"] and row["parts"] == [], row


def test_a_plan_shows_the_parts_and_writes_nothing(tiny: Path, tmp_path: Path) -> None:
    path = matrix(tmp_path, tiny, "target: onnx\n")
    (row,) = batch.check(path, tmp_path / "out").rows
    assert [part.id for part in row.parts] == [f"t-r@{part}" for part in PARTS]
    assert all(part.memory > row.memory and part.disk > 0 for part in row.parts)
    assert not (tmp_path / "out").exists()
    (row,) = batch.check(matrix(tmp_path, tiny, "target: onnx\n", ""), tmp_path / "out").rows
    assert row.parts == [] and row.split == "", "auto, and no cluster"
    (row,) = batch.check(path, tmp_path / "out", ray="127.0.0.1:9").rows
    assert row.split.startswith("auto: 3 parts, if")


def test_a_wrong_word_is_refused_with_its_line(tiny: Path, tmp_path: Path) -> None:
    path = matrix(tmp_path, tiny, "target: onnx\n", "split: perhaps\n")
    invoke("batch", path, "-o", tmp_path / "out").failed(3, "m.yaml line 6", "split", "'never'")
    assert Matrix.model_json_schema()["properties"]["split"]["enum"] == ["auto", "never", "always"]
