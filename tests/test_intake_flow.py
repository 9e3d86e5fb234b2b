"""SD3 and FLUX.1 in one file, from the command line to the verdict, with a base and without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from exporter import conversion, pipeline, recipes
from exporter.artifact import Artifact
from exporter.errors import ArtifactError, CheckpointError, UsageError
from exporter.parity import verify
from exporter.recipes import from_manifest
from tests import original_layout
from tests.checkpoints.flow_files import everything, give_identity, transformer
from tests.cli.runner import invoke as run
from tests.families import make

pytest.importorskip("onnx")
QUICK: dict[str, Any] = {"steps": 2, "samples": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("intake-flow")
    made = {family: make(family, root / family) for family in ("flux", "sd35")}
    give_identity(made["sd35"], root / "building")
    return made


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The transformer of FLUX.1 dev, as Black Forest Labs publish it."""
    path = tmp_path_factory.mktemp("alone") / "flux1-dev.safetensors"
    return str(original_layout.save(transformer(folders["flux"], ""), path))


def test_what_is_missing_is_said_before_any_work(
    folders: dict[str, Path], alone: str, tmp_path: Path
) -> None:
    base, out = str(folders["flux"]), tmp_path / "out"
    request = ("convert", alone, "--to", "onnx", "-o", str(out), "--dry-run", "--json")
    refused = run(*request, "--config", base)
    assert refused.code == 3, refused
    error = json.loads(refused.stdout)["error"]
    lacks = "holds transformer and lacks text_encoder (CLIP L), text_encoder_2 (T5), vae (autoencoder)."
    assert error["message"] == f"{alone} {lacks}" and "--base SOURCE" in error["hint"]
    one = run(*request, "--config", base, "--component", "transformer")
    assert one.code == 0 and [c["name"] for c in json.loads(one.stdout)["components"]] == ["transformer"]
    whole = run(*request, "--base", base)
    assert whole.code == 0, whole
    assert len(json.loads(whole.stdout)["components"]) == 5
    assert f"vae: from {base}" in " ".join(json.loads(whole.stdout)["notes"])
    seen = run("inspect", alone, "--config", base)
    assert seen.code == 0 and "lacking: text_encoder (CLIP L), text_encoder_2 (T5)" in seen.stdout, seen
    assert run("convert", base, "--base", base, "--to", "onnx", "--dry-run").code == 2
    with pytest.raises(CheckpointError, match="lacks text_encoder"):
        pipeline.load(alone, config=base)


def test_the_reference_pipeline_is_the_folders(folders: dict[str, Path], alone: str) -> None:
    def first(source: str, **intake: Any) -> torch.Tensor:
        loaded = pipeline.load(source, **intake)
        picture = loaded("a star", num_inference_steps=1, height=64, width=64, output_type="pt",
                         generator=torch.Generator().manual_seed(0))  # fmt: skip
        return torch.as_tensor(picture.images)

    base = str(folders["flux"])
    assert torch.equal(first(alone, base=base), first(base))


def test_a_recipe_names_the_base(folders: dict[str, Path], alone: str) -> None:
    from exporter.recipes.reading import parse

    text = f"name: r\nmodel: {json.dumps(alone)}\nbase: {json.dumps(str(folders['flux']))}\ntarget: onnx\n"
    (cell,) = recipes.cells(parse(text, "r"))
    assert cell.recipe.intake()["base"] == str(folders["flux"])


def test_float8_is_not_copied_where_nobody_computes_with_it(folders: dict[str, Path], tmp_path: Path) -> None:
    state = {n: t.to(torch.float8_e4m3fn) for n, t in everything(folders["flux"]).items()}
    path = str(original_layout.save(state, tmp_path / "model.safetensors"))
    given = {"base": str(folders["flux"])}
    for options in ({}, {"dtype": "float8_e4m3fn"}):
        with pytest.raises(UsageError, match="in float8, which transformers does not compute with") as caught:
            conversion.make_plan(path, "safetensors", tmp_path / "out", options, intake=given)
        assert "--dtype bfloat16" in str(caught.value.hint)
    plan = conversion.make_plan(path, "safetensors", tmp_path / "out", {"dtype": "bfloat16"}, intake=given)
    assert len(plan.components) == 5


@pytest.mark.full
@pytest.mark.parametrize("family", ["flux", "sd35"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn], ids=["float32", "float8"])
def test_an_all_in_one_file_becomes_a_verified_artifact(
    folders: dict[str, Path], tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    state = {n: t.to(dtype) for n, t in everything(folders[family]).items()}
    path = original_layout.save(state, tmp_path / "model.safetensors")
    plan = conversion.make_plan(
        str(path), "onnx", tmp_path / "out", {}, intake={"base": str(folders[family])}, hash_source=True
    )
    done = conversion.convert(plan, verify_settings=QUICK)
    assert done.verdict == "PASS", done.summary
    assert pipeline.paint(pipeline.load(done.artifact.root), ["a star"], steps=2)[0].size == (64, 64)


@pytest.mark.full
def test_a_transformer_with_a_base_and_back(folders: dict[str, Path], alone: str, tmp_path: Path) -> None:
    """The manifest names the base, and what it gave is part of what is checked when it is judged again."""
    base = make("flux", tmp_path / "base")  # the same weights as the fixture's, by the same seed
    plan = conversion.make_plan(
        alone, "onnx", tmp_path / "out", {}, intake={"base": str(base)}, hash_source=True
    )
    done = conversion.convert(plan, verify_settings=QUICK)
    assert done.verdict == "PASS", done.summary
    manifest = Artifact.open(tmp_path / "out").manifest
    recorded = {file.path for file in manifest.source.files}
    assert manifest.source.base == str(base) and from_manifest(manifest).base == str(base)
    assert {"flux1-dev.safetensors", "vae/diffusion_pytorch_model.safetensors"} <= recorded
    assert verify(tmp_path / "out", **QUICK).verdict == "PASS"
    make("flux", tmp_path / "other", seed=1)
    (tmp_path / "other" / "vae" / "diffusion_pytorch_model.safetensors").replace(
        base / "vae" / "diffusion_pytorch_model.safetensors"
    )
    with pytest.raises(ArtifactError, match=r"vae/diffusion_pytorch_model\.safetensors differs"):
        verify(tmp_path / "out", **QUICK)


@pytest.mark.full
def test_a_transformer_alone_is_inconclusive(folders: dict[str, Path], alone: str, tmp_path: Path) -> None:
    """No pipeline can be run for a capture, so the component is judged on random inputs, and that is said."""
    out = tmp_path / "out"
    made = run(
        "convert", alone, "--config", str(folders["flux"]), "--component", "transformer", "--to", "onnx",
        "-o", str(out), "--json",
    )  # fmt: skip
    assert made.code == 5, made
    report = verify(out, **QUICK)
    assert report.verdict == "INCONCLUSIVE" and "lacks text_encoder" in report.summary, report.summary
    assert [c.verdict for c in report.components] == ["PASS"]
    assert {case.kind for case in report.components[0].runs[0].cases} >= {"random"}
