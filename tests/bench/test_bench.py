"""Competitors take turns, one that breaks does not stop the others, and the page stands alone."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from exporter import bench, conversion
from exporter.bench import BenchResult, Row
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


def test_the_page_stands_alone(result: BenchResult, tmp_path: Path) -> None:
    write_page(result, tmp_path / "bench.html")
    page = read((tmp_path / "bench.html").read_text(encoding="utf-8"))
    assert all(address.startswith("data:") for address in page.addresses)
    assert "pytorch" in page.text and "identical" in page.text


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


def test_numbers_for_people() -> None:
    assert [seconds(v) for v in (0.0123, 1.234, math.nan)] == ["12.3 ms", "1.23 s", "–"]
    assert [decibels(v) for v in (None, math.inf, 38.24)] == ["–", "identical", "38.2 dB"]
    rows = [Row("a", "pytorch", [1.0]), Row("<b>", "onnx", [0.5], speedup=2.0, psnr=math.inf)]
    drawn = str(scatter(rows))
    assert "&lt;b&gt;" in drawn and "2×" in drawn
    assert str(scatter(rows[:1])) == ""
