"""`verify` judges an artifact that optimum exported: a folder with no manifest of ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from exporter.errors import ArtifactError
from exporter.parity import verify

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def optimum_export(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    exporters = pytest.importorskip("optimum.exporters.onnx")
    folder = tmp_path_factory.mktemp("optimum") / "export"
    exporters.main_export(
        str(tiny), str(folder), task="text-to-image", library_name="diffusers", do_validation=False
    )
    return folder


def test_an_optimum_export_passes(optimum_export: Path, tiny: Path, tmp_path: Path) -> None:
    before = sorted(p.name for p in optimum_export.rglob("*"))
    report = verify(
        optimum_export, against=str(tiny), steps=2, samples=2, report_dir=tmp_path / "r", cache=tmp_path / "c"
    )
    assert report.verdict == "PASS", report.summary
    assert len(report.components) == 4 and report.pipeline is not None
    assert "--against" in report.command
    assert sorted(p.name for p in optimum_export.rglob("*")) == before


def test_a_fault_in_it_fails(optimum_export: Path, tiny: Path, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    path = optimum_export / "vae_decoder" / "model.onnx"
    model = onnx.load(path)
    bias = next(t for t in model.graph.initializer if t.name.endswith("conv_in.bias"))
    bias.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(bias)), bias.name))
    onnx.save(model, path)
    report = verify(
        optimum_export, against=str(tiny), steps=1, samples=1, components=["vae_decoder"], pipeline=False,
        report_dir=tmp_path / "r", cache=tmp_path / "c",
    )  # fmt: skip
    assert report.verdict == "FAIL"
    assert report.components[0].worst is not None and report.components[0].worst.ratio > 100


def test_a_component_that_is_missing_is_said(optimum_export: Path, tiny: Path, tmp_path: Path) -> None:
    hidden = optimum_export / "unet"
    hidden.rename(tmp_path / "unet")
    try:
        with pytest.raises(ArtifactError, match=r"no unet/model\.onnx: its unet is missing"):
            verify(optimum_export, against=str(tiny), cache=tmp_path / "c")
    finally:
        (tmp_path / "unet").rename(hidden)


def test_it_needs_to_be_told_the_source(optimum_export: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no exporter\.json"):
        verify(optimum_export)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ArtifactError, match="holds no exported component"):
        verify(empty, against="builtin:shapes")
