"""A cell in parts is the same artifact, byte for byte, as the cell as a whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exporter import batch
from exporter.artifact import Artifact
from exporter.batch import Row
from tests.batch.matrices import attempts

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
        "target: safetensors\n",
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
    assert all(attempts(many, f"t-r@{part}") == ["begun", "done"] for part in PARTS)
