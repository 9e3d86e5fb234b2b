"""What a matrix stands for; every complaint names the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter import batch
from exporter.errors import InputError
from tests.cli.runner import invoke

GOOD = """\
name: m
models:
  - builtin:shapes
  - model: ./mine.safetensors
    set: {options.dtype: float16}
recipes:
  - onnx/float32
  - recipe: onnx/sizes
    name: sized
"""


def read(tmp_path: Path, text: str) -> list[batch.Job]:
    path = tmp_path / "m.yaml"
    path.write_text(text)
    return batch.jobs(batch.read(path), tmp_path / "out")


def test_every_model_meets_every_recipe_and_its_axes(tmp_path: Path) -> None:
    found = read(tmp_path, GOOD)
    names = [job.row.id for job in found]
    assert names[0] == "shapes-onnx-float32" and "mine-onnx-float32" in names
    assert [n for n in names if n.startswith("shapes-sized")], names
    assert len(names) == len(set(names)) == 2 * len([n for n in names if n.startswith("shapes")])
    by_name = {job.row.id: job for job in found}
    assert by_name["mine-onnx-float32"].cell.recipe.options["dtype"] == "float16"
    assert by_name["mine-onnx-float32"].cell.recipe.model == "./mine.safetensors"
    assert "dtype" not in by_name["shapes-onnx-float32"].cell.recipe.options
    assert by_name["shapes-onnx-float32"].output == tmp_path / "out" / "shapes-onnx-float32"


def test_a_combination_is_left_out(tmp_path: Path) -> None:
    found = read(tmp_path, GOOD + "skip:\n  - {model: mine, recipe: onnx-float32}\n")
    assert "mine-onnx-float32" not in [job.row.id for job in found]


def test_a_recipe_beside_the_matrix_goes_before_the_shelf(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("name: own\nmodel: x\ntarget: openvino\n")
    (job,) = read(tmp_path, "name: m\nmodels: [builtin:shapes]\nrecipes: [own.yaml]\n")
    assert job.row.target == "openvino" and job.cell.recipe.model == "builtin:shapes"


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        (GOOD + "modles: []\n", 10, "no key 'modles'"),
        (GOOD.replace("    set: {", "    sett: {"), 5, "no key 'models.1.sett'"),
        (GOOD.replace("onnx/float32", "onnx/float99"), 7, "There is no recipe 'onnx/float99'"),
        (GOOD + "set: {optoins.dtype: float16}\n", 7, "no key 'optoins'"),
        (GOOD + "skip:\n  - {model: mine, recipe: nope}\n", 10, "no combination mine × nope"),
        (GOOD.replace("./mine.safetensors", "./shapes"), 4, "two cells"),
        (GOOD.replace("onnx/float32", "pytorch/plain"), 7, "measures PyTorch"),
        (GOOD.replace("onnx/float32", "both/publish"), 7, "publishes"),
        (GOOD.replace("models:", "models: {"), 3, "not YAML"),
        ("name: m\nrecipes: [onnx/float32]\n", 1, "'models' is missing"),
        ("name: m\nmodels: []\nrecipes: [onnx/float32]\n", 2, "models"),
    ],
)
def test_a_broken_matrix_is_refused_with_its_line(tmp_path: Path, text: str, line: int, part: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    assert f"line {line}:" in caught.value.message and part in caught.value.message, caught.value.message


def test_the_command_says_so_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(GOOD + "modles: []\n")
    invoke("batch", path, "-o", tmp_path / "out").failed(3, "m.yaml line 10", "no key 'modles'")
    assert not (tmp_path / "out").exists()
    invoke("batch", tmp_path / "none.yaml", "-o", tmp_path / "out").failed(3, "cannot be read")
    invoke("batch", "no-such", "-o", tmp_path / "out").failed(2, "There is no matrix 'no-such'", "embedded")


def test_the_worst_exit_code() -> None:
    assert batch.worst([]) == batch.worst([0, 0]) == 0
    assert batch.worst([5, 7, 0, 3, 1]) == 1
    assert batch.worst([5, 0, 6, 4]) == 4
    assert batch.worst([0, 5]) == 5
    assert set(batch.WORST_FIRST) == {1, 2, 3, 4, 5, 6, 7}


def test_the_example_on_the_shelf_can_be_run(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("openvino")
    summary = batch.check("embedded", tmp_path / "out")
    assert len(summary.rows) == 4 and summary.exit_code == 0
    assert all(row.memory > 0 and row.disk > 0 for row in summary.rows)
    assert not (tmp_path / "out").exists(), "a plan writes nothing"
