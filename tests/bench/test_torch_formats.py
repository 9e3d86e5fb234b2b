"""Safetensors, StableHLO and TorchScript take part in `bench` and have their rows in the demo."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter import bench, conversion
from exporter.demo.rows import make_row
from exporter.progress import NullProgress

pytestmark = pytest.mark.full  # `make demo` shows the same; a minute in all
TARGETS = ("safetensors", "stablehlo", "torchscript")


@pytest.fixture(scope="module")
def result(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> bench.BenchResult:
    root = tmp_path_factory.mktemp("formats")
    made = [
        conversion.convert(
            conversion.make_plan(str(tiny), target, root / target, {}, verify=False)
        ).artifact.root
        for target in TARGETS
    ]
    return bench.run([str(tiny), *map(str, made)], runs=1, steps=2)


def test_they_are_measured_beside_pytorch(result: bench.BenchResult) -> None:
    assert [row.target for row in result.rows] == ["pytorch", *TARGETS]
    for row in result.rows[1:]:
        assert row.error is None and row.arithmetic == "float32"
        assert row.psnr is not None and row.psnr > 60
        assert set(row.parts) == {"text_encoder", "unet", "vae_decoder"}


@pytest.mark.parametrize("target", TARGETS)
def test_they_have_a_row_in_the_demo(tiny: Path, tmp_path: Path, target: str) -> None:
    from exporter.demo.rows import paint_all

    size = {"seed": 3, "steps": 2, "progress": NullProgress()}
    reference = paint_all(str(tiny), ["a cat"], **size).pictures
    quick = {"steps": 1, "samples": 1, "pipeline": False}
    row = make_row(target, str(tiny), tmp_path / target, ["a cat"], reference, verify_settings=quick, **size)
    assert row.status == "PASS", row.summary
    assert row.lowest_psnr is not None and row.lowest_psnr > 60
    assert len(row.components) == 4 and {c.verdict for c in row.components} == {"PASS"}
