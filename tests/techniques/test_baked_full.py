"""Techniques in artifacts with sizes, dtypes, SDXL, in every format that has them; recipes and bench.

Everything is converted, judged, opened and painted with; slow, so all of it is `full`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from exporter import bench, pipeline, recipes
from exporter.artifact import Artifact
from exporter.conversion import convert, make_plan
from exporter.errors import UsageError
from tests.tiny_sdxl import make_tiny_sdxl

pytestmark = pytest.mark.full

CACHED: Any = {"deep-cache": {"interval": 2}}
GATED: Any = {"t-gate": {"gate": 2}}
MERGED: Any = {"token-merging": {"ratio": 0.5}}
ONE, TWO = "1x64x64", ["1x64x64", "1x64x96"]
VERIFY: dict[str, Any] = {"steps": 4, "samples": 2, "prompts": ["a red star"]}
PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino", "stablehlo": "jax"}


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sdxl(tmp_path_factory.mktemp("xl") / "tiny-sdxl")


def passes(source: Path, target: str, out: Path, options: dict[str, Any], *given: Any) -> Artifact:
    """Convert, judge and paint two prompts at once."""
    pytest.importorskip(PACKAGES.get(target, "torch"))
    done = convert(make_plan(str(source), target, out, options, techniques=given), verify_settings=VERIFY)
    assert done.verdict == "PASS", done.summary
    painter = pipeline.load(out, height=64, width=64, trust=True)
    pictures = pipeline.paint(painter, ["a", "b"], steps=4, seed=[1, 2], together=2, height=64, width=64)
    assert [picture.size for picture in pictures] == [(64, 64)] * 2
    return Artifact.open(out)


@pytest.mark.parametrize("given", [CACHED, GATED, MERGED], ids=lambda given: next(iter(given)))
@pytest.mark.parametrize("target", ["onnx", "openvino"])
class TestOneTechnique:
    def test_one_size(self, target: str, given: Any, tiny: Path, tmp_path: Path) -> None:
        passes(tiny, target, tmp_path / "artifact", {"static": ONE}, given)

    def test_several_sizes(self, target: str, given: Any, tiny: Path, tmp_path: Path) -> None:
        artifact = passes(tiny, target, tmp_path / "artifact", {"static": TWO}, given)
        painter = pipeline.load(artifact.root, height=64, width=96)
        (picture,) = pipeline.paint(painter, ["a"], steps=4, height=64, width=96)
        assert picture.size == (96, 64)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_narrow_weights(self, dtype: str, target: str, given: Any, tiny: Path, tmp_path: Path) -> None:
        if target == "onnx" and dtype == "bfloat16":
            pytest.skip("ONNX Runtime has no kernels for it; convert says so")
        passes(tiny, target, tmp_path / "artifact", {"dtype": dtype}, given)

    def test_sdxl(self, target: str, given: Any, xl: Path, tmp_path: Path) -> None:
        if given is MERGED:
            with pytest.raises(UsageError, match="outermost level has none"):
                passes(xl, target, tmp_path / "artifact", {}, given)
            return
        passes(xl, target, tmp_path / "artifact", {}, given)


@pytest.mark.parametrize("target", ["onnx", "openvino", "torchscript", "pt2", "stablehlo"])
def test_fused_projections_and_tiles_in_every_format(target: str, tiny: Path, tmp_path: Path) -> None:
    artifact = passes(tiny, target, tmp_path / "artifact", {}, "fused-qkv", "vae-tiling")
    painter = pipeline.load(artifact.root, trust=True)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    tiled = painter.vae.decode(latents, return_dict=False)[0]
    painter.vae.disable_tiling()
    whole = painter.vae.decode(latents, return_dict=False)[0]
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)


@pytest.mark.parametrize(
    "name", ["onnx/fused-qkv", "onnx/deep-cache", "openvino/t-gate", "openvino/token-merging"]
)
def test_recipes_with_their_denoiser(
    name: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests of recipes convert another component of them, which has no technique in it."""
    monkeypatch.chdir(tmp_path)
    recipe = recipes.read(recipes.find(name), [f"model={tiny}"])
    (row,) = recipes.run(recipe).rows
    assert row.error is None and row.output is not None, row.error
    manifest = Artifact.open(row.output).manifest
    assert manifest.techniques and manifest.verification is not None
    assert manifest.verification.verdict == "PASS", manifest.verification.summary


def test_bench_takes_it_beside_the_plain_artifact_in_either_order(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    plain, cached = tmp_path / "plain", tmp_path / "cached"
    convert(make_plan(str(tiny), "onnx", plain, verify=False))
    convert(make_plan(str(tiny), "onnx", cached, verify=False, techniques=[CACHED]))
    for order in ([plain, cached], [cached, plain]):
        first, second = bench.run([str(path) for path in order], runs=1, steps=4).rows
        assert [row.name for row in (first, second)] == [str(path) for path in order]
        assert first.error is second.error is None
        assert first.psnr is None and second.psnr is not None and 5 < second.psnr < 90
        assert second.speedup == pytest.approx(first.median / second.median)
        assert first.disk > 0 and set(first.parts) == set(second.parts)
