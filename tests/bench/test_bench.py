"""Competitors take turns, one that breaks does not stop the others, and the page stands alone."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest

from exporter import bench, conversion
from exporter.bench import BenchResult, Entrant, Row, Settings
from exporter.bench.page import decibels, scatter, seconds, write_page
from exporter.errors import UsageError
from tests.cli.runner import invoke
from tests.demo.pages import read

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def artifact(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "tiny-onnx"
    return conversion.convert(conversion.make_plan(str(tiny), "onnx", out, {}, verify=False)).artifact.root


@pytest.fixture(scope="module")
def result(artifact: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> BenchResult:
    broken = tmp_path_factory.mktemp("broken") / "broken-onnx"
    shutil.copytree(artifact, broken)
    (broken / "unet" / "model.onnx").write_bytes(b"not a graph")
    return bench.run([str(tiny), str(artifact), str(broken)], runs=2, steps=2)


def test_everyone_painted_the_same_picture_as_often_as_asked(result: BenchResult, tiny: Path) -> None:
    torch, onnx, _ = result.rows
    assert [len(row.seconds) for row in (torch, onnx)] == [2, 2]
    assert (torch.target, onnx.target) == ("pytorch", "onnx")
    assert onnx.psnr is not None and onnx.psnr > 40
    assert onnx.speedup == pytest.approx(torch.median / onnx.median)
    assert torch.arithmetic == onnx.arithmetic == "float32"
    for row in (torch, onnx):
        assert row.spread[0] <= row.median <= row.spread[1]
        assert set(row.parts) == {"text_encoder", "unet", "vae_decoder"}
        assert sum(row.parts.values()) < row.spread[1] < 60
        assert row.peak_memory > 100e6
    stored = sum(p.stat().st_size for p in tiny.rglob("*.safetensors"))
    assert torch.disk == stored


def test_one_that_breaks_is_named_and_the_others_go_on(result: BenchResult) -> None:
    broken = result.rows[2]
    assert broken.error is not None and broken.seconds == [] and broken.speedup is None
    assert result.exit_code == broken.error.exit_code == 3


def test_json_has_no_nan(result: BenchResult) -> None:
    document = json.loads(json.dumps(result.as_dict(), default=str, allow_nan=False))
    assert [row["error"] is None for row in document["rows"]] == [True, True, False]
    same = Row("a", "onnx", [1.0], psnr=math.inf).as_dict()
    assert same["psnr"] is None and same["identical"] is True


def test_the_page_stands_alone(result: BenchResult, tmp_path: Path) -> None:
    write_page(result, tmp_path / "bench.html")
    page = read((tmp_path / "bench.html").read_text(encoding="utf-8"))
    assert all(address.startswith("data:") for address in page.addresses)
    assert "pytorch" in page.text and "identical" in page.text
    assert "reference" in page.text and "not judged" not in page.text
    changed = Row("cached", "pytorch", [1.0], techniques=["deep-cache"])  # paints other pictures
    write_page(BenchResult(result.settings, [changed], {}), tmp_path / "changed.html")
    page = read((tmp_path / "changed.html").read_text(encoding="utf-8"))
    assert "not judged" in page.text and "reference" not in page.text


def test_one_after_the_other(tiny: Path, artifact: Path) -> None:
    ran = invoke(
        "bench", artifact, tiny, "--runs", 1, "--warm-up", 0, "--steps", 1, "--one-at-a-time", "--json"
    )
    assert ran.code == 0, ran.stderr
    document = json.loads(ran.stdout)
    assert document["interleaved"] is False
    assert [row["target"] for row in document["rows"]] == ["onnx", "pytorch"]


def test_requests_that_make_no_sense(tiny: Path) -> None:
    with pytest.raises(UsageError, match="named twice"):
        bench.run([str(tiny), str(tiny)])
    with pytest.raises(UsageError, match="at least 1"):
        bench.run([str(tiny)], runs=0)
    with pytest.raises(UsageError, match="Nothing to measure"):
        bench.run([])
    invoke("bench").failed(2, "Nothing to measure")


def test_a_worker_ends_with_its_parent_in_the_middle_of_a_picture(tiny: Path) -> None:
    settings = asdict(Settings(prompt="a cat", steps=900, height=512, width=512))
    worker = subprocess.Popen(
        [sys.executable, "-m", "exporter.bench.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdin and worker.stdout
    try:
        worker.stdin.write(json.dumps({"open": asdict(Entrant(str(tiny))), "settings": settings}) + "\n")
        worker.stdin.flush()
        assert json.loads(worker.stdout.readline())["target"] == "pytorch"
        worker.stdin.write(json.dumps({"paint": True}) + "\n")
        worker.stdin.close()
        assert worker.wait(timeout=10) == 0
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()


def test_a_recipe_that_cannot_be_does_not_stop_the_others(artifact: Path, tiny: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "bench.html"
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"name: mine\nmodel: {tiny}\ntarget: pytorch\ntechniques: [first-block-cache]\n")
    ran = invoke(
        "bench", tiny, "--recipe", mine, "--runs", 1, "--warm-up", 0, "--steps", 1, "--page", page, "--json"
    )
    assert ran.code == 2, ran.stderr
    document = json.loads(ran.stdout)
    first, second = document["rows"]
    assert first["error"] is None and len(first["seconds"]) == 1 and first["exit_code"] == 0
    assert "works on a transformer" in second["error"] and document["exit_code"] == second["exit_code"] == 2
    assert "works on a transformer" in read(page.read_text(encoding="utf-8")).text


def test_an_artifact_of_another_request_is_not_measured_under_a_recipes_name(
    artifact: Path, tiny: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "half.yaml"
    recipe.write_text(
        f"name: half\nmodel: {tiny}\ntarget: onnx\noutput: {artifact}\noptions: {{dtype: float16}}\n"
    )
    small = ["--runs", 1, "--warm-up", 0, "--steps", 1, "--json"]
    ran = invoke("bench", tiny, "--recipe", recipe, *small)
    row = json.loads(ran.stdout)["rows"][1]
    assert ran.code == 2 and "is not what the recipe makes (other options)" in row["error"]
    ran = invoke("bench", tiny, "--recipe", recipe, "--set", "options.dtype=float32", *small)
    assert ran.code == 0 and json.loads(ran.stdout)["rows"][1]["error"] is None


@pytest.mark.full
def test_without_a_yardstick(artifact: Path, tmp_path: Path) -> None:
    """What was measured is shown all the same, and that nothing is compared."""
    page = tmp_path / "bench.html"
    none = tmp_path / "none"
    small = ["--runs", 1, "--warm-up", 0, "--steps", 1]
    ran = invoke("bench", none, artifact, *small, "--page", page)
    assert ran.code == 3 and f"Nothing is compared: {none} comes first" in ran.stdout
    text = read(page.read_text(encoding="utf-8")).text
    assert "Nothing is compared" in text and "vae_decoder" in text and "does not exist" in text


def test_a_page_that_cannot_be_written_is_told_before_the_work(artifact: Path, tmp_path: Path) -> None:
    invoke("bench", artifact, "--page", tmp_path).failed(2, "it is a folder")
    (tmp_path / "file").write_text("")
    ran = invoke("bench", artifact, "--page", tmp_path / "file" / "page.html")
    assert ran.code == 2 and "opening" not in ran.stderr
    invoke("bench", artifact, "--set", "model=x").failed(2, "no", "none is named")


def test_numbers_for_people() -> None:
    assert [seconds(v) for v in (0.0123, 1.234, math.nan)] == ["12.3 ms", "1.23 s", "–"]
    assert [decibels(v) for v in (None, math.inf, 38.24)] == ["–", "identical", "38.2 dB"]
    rows = [Row("a", "pytorch", [1.0]), Row("<b>", "onnx", [0.5], speedup=2.0, psnr=math.inf)]
    drawn = str(scatter(rows))
    assert "&lt;b&gt;" in drawn and "2×" in drawn
    assert str(scatter(rows[:1])) == ""


def test_names_in_the_plot_stand_neither_on_each_other_nor_outside() -> None:
    same = [Row(f"{n}-onnx", "onnx", [1.0], speedup=2.0, psnr=95.0) for n in "abc"]
    long = Row("a-recipe-with-quite-a-long-name", "onnx", [0.1], speedup=8.0, psnr=40.0)
    drawn = str(scatter([Row("plain", "pytorch", [1.0]), *same, long]))
    heights = [float(y) for y in re.findall(r'class="name" x="[\d.]+" y="([\d.]+)">.-onnx', drawn)]
    assert len(heights) == 3 and min(b - a for a, b in pairwise(sorted(heights))) >= 15
    assert re.search(r'text-anchor="end" y="[\d.]+">a-recipe-with-quite-a-long-name', drawn)
