"""Single files and overlays from the command line and from Python, to the verdict and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import exporter
from exporter import conversion, pipeline
from exporter.artifact import Artifact
from exporter.errors import CheckpointError, UsageError
from tests import original_layout
from tests.checkpoints import conftest as loras
from tests.checkpoints.conftest import pairs, write
from tests.cli.runner import invoke as run

pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def sources(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A single file, and one overlay of each kind."""
    folder = tmp_path_factory.mktemp("sources")
    state = original_layout.stable_diffusion_1(tiny)
    vae, config = original_layout.read(tiny, "vae")
    vae = {name: tensor * 1.01 for name, tensor in vae.items()}
    return {
        "file": str(original_layout.save(state, folder / "tiny.safetensors")),
        "lora": write(folder / "style.safetensors", loras.kohya(pairs())),
        "tokens": write(folder / "cat.safetensors", {"<cat>": torch.ones(1, 32) * 0.3}),
        "vae": str(original_layout.save(original_layout.vae(vae, config, ""), folder / "vae.safetensors")),
    }


def test_the_command_line_from_one_file_to_the_verdict(
    tiny: Path, sources: dict[str, str], tmp_path: Path, user_cache: Path
) -> None:
    out = tmp_path / "out"
    made = run(
        "convert", sources["file"], "--config", str(tiny), "--to", "onnx", "-o", str(out), "--json",
        "--lora", f"{sources['lora']}:0.5", "--textual-inversion", sources["tokens"], "--vae", sources["vae"],
        "--component", "text_encoder",
    )  # fmt: skip
    assert made.code == 0, made
    assert json.loads(made.stdout)["verdict"] == "PASS"
    source = Artifact.open(out).manifest.source
    assert [(o.kind, o.scale) for o in source.overlays] == [
        ("vae", None), ("textual_inversion", None), ("lora", 0.5),
    ]  # fmt: skip
    assert all(len(f.sha256) == 64 for o in source.overlays for f in o.files)
    assert source.config == str(tiny) and not source.pickle
    assert json.loads((out / "text_encoder/config.json").read_text())["vocab_size"] == 515
    assert "<cat>" in (out / "tokenizer/added_tokens.json").read_text()
    moved = Path(sources["lora"]).rename(tmp_path / "moved.safetensors")
    try:
        again = run("verify", str(out), "--json")
        assert again.code == 3 and "style.safetensors is not there" in again.stdout
    finally:
        moved.rename(sources["lora"])


def plan(source: str, output: Path, **intake: Any) -> conversion.Plan:
    return conversion.make_plan(source, "onnx", output, {}, intake=intake)


def test_every_overlay_is_part_of_what_is_resumed(
    tiny: Path, sources: dict[str, str], tmp_path: Path
) -> None:
    lora = sources["lora"]
    plans = [
        plan(str(tiny), tmp_path / "x"),
        plan(str(tiny), tmp_path / "x", loras=[lora]),
        plan(str(tiny), tmp_path / "x", loras=[f"{lora}:0.5"]),
        plan(str(tiny), tmp_path / "x", vae=sources["vae"]),
        plan(str(tiny), tmp_path / "x", textual_inversions=[sources["tokens"]]),
        plan(sources["file"], tmp_path / "x", config=str(tiny)),
    ]
    assert len({each.digest for each in plans}) == len(plans)
    assert plan(str(tiny), tmp_path / "x", loras=[lora]).digest == plans[1].digest
    assert plans[2].as_dict()["overlays"][0]["scale"] == 0.5
    assert plans[3].notes and "scaling" in plans[3].notes[0]


def test_the_plan_shows_overlays_and_notes(tiny: Path, sources: dict[str, str], tmp_path: Path) -> None:
    shown = run(
        "convert", sources["file"], "--tokenizer", str(tiny / "tokenizer"), "--to", "onnx", "--dry-run",
        "-o", str(tmp_path / "x"), "--lora", f"{sources['lora']}:0.5",
    )  # fmt: skip
    assert shown.code == 0, shown
    assert "style.safetensors at 0.5" in shown.stdout
    assert "note: unet: 8 attention heads" in shown.stdout and "PNDMScheduler" in shown.stdout


def test_the_reference_pipeline_has_the_overlays(tiny: Path, sources: dict[str, str]) -> None:
    """`exporter.load` of a single file is the folder's pipeline; a LoRA changes what it paints."""

    def first(source: str, **intake: Any) -> torch.Tensor:
        loaded = pipeline.load(source, **intake)
        picture = loaded("a star", num_inference_steps=1, height=64, width=64, output_type="pt",
                         generator=torch.Generator().manual_seed(0))  # fmt: skip
        return torch.as_tensor(picture.images)

    plain = first(str(tiny))
    assert torch.equal(first(sources["file"], config=str(tiny)), plain)
    changed = first(sources["file"], config=str(tiny), loras=[sources["lora"]])
    assert not torch.allclose(changed, plain, atol=1e-3)


def test_bad_requests_have_their_exit_code(tiny: Path, sources: dict[str, str], tmp_path: Path) -> None:
    for arguments, code, sentence in (
        (["--lora", "nowhere.safetensors"], 3, "The LoRA nowhere.safetensors is not there."),
        (["--lora", f"{sources['lora']}:nan"], 2, "must be a finite number"),
        (["--vae", sources["lora"]], 3, "holds no autoencoder"),
        (["--config", str(tiny)], 2, "--config is for a checkpoint in one file"),
        (["--tokenizer", str(tiny)], 2, "--tokenizer is for a checkpoint in one file"),
    ):
        result = run("convert", str(tiny), "--to", "onnx", "-o", str(tmp_path / "x"), "--json", *arguments)
        assert result.code == code, (arguments, result)
        assert sentence in json.loads(result.stdout)["error"]["message"]
    assert not (tmp_path / "x").exists()
    with pytest.raises(UsageError, match="finite number"):
        exporter.convert(str(tiny), to="onnx", loras=[(sources["lora"], float("inf"))])
    with pytest.raises(CheckpointError, match="is a LoRA, not a model"):
        exporter.convert(sources["lora"], to="onnx")


def test_inspect_reads_a_single_file(sources: dict[str, str], tiny: Path) -> None:
    from exporter.checkpoints import resolve
    from exporter.inspection import inspect_checkpoint

    found = inspect_checkpoint(resolve(sources["file"], config=str(tiny)))
    folder = inspect_checkpoint(resolve(tiny))
    assert found.convertible and not found.problems
    assert [(c.name, c.parameters) for c in found.components] == [
        (c.name, c.parameters) for c in folder.components
    ]


def test_run_and_inspect_take_what_convert_takes(tiny: Path, sources: dict[str, str], tmp_path: Path) -> None:
    """The picture of a checkpoint with overlays is that of the Python call; an artifact takes none."""
    from PIL import Image

    given = ["--config", str(tiny), "--lora", f"{sources['lora']}:0.5", "--vae", sources["vae"]]
    size = ["--height", "64", "--width", "64", "--steps", "1", "--seed", "3"]
    picture = tmp_path / "a.png"
    ran = run("run", sources["file"], "a cat", "-o", picture, *size, *given)
    assert ran.code == 0, ran
    loaded = pipeline.load(
        sources["file"], config=str(tiny), loras=[f"{sources['lora']}:0.5"], vae=sources["vae"]
    )
    (expected,) = pipeline.paint(loaded, ["a cat"], steps=1, seed=3, height=64, width=64)
    assert list(Image.open(picture).getdata()) == list(expected.getdata())

    plain = json.loads(run("inspect", sources["file"], "--config", tiny, "--json").stdout)
    ran = run(
        "inspect", sources["file"], "--config", tiny, "--textual-inversion", sources["tokens"], "--json"
    )
    more = json.loads(ran.stdout)
    assert more["parameters"] == plain["parameters"] + 32, "one new token"

    made = conversion.make_plan(str(tiny), "safetensors", tmp_path / "art", {}, verify=False)
    artifact = conversion.convert(made).artifact.root
    run("inspect", artifact, "--lora", sources["lora"]).failed(2, "is an artifact")
    run("run", artifact, "a cat", "-o", picture, "--lora", sources["lora"]).failed(2, "is an artifact")
