"""ControlNets laid over a checkpoint that has none, and those that a checkpoint brings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from exporter.architectures import components_of
from exporter.artifact import MANIFEST, Artifact
from exporter.checkpoints import open_source, resolve
from exporter.checkpoints.selection import components, select_files
from exporter.errors import ArtifactError, CheckpointError
from exporter.parity.sources import reference_for
from exporter.pipeline import from_checkpoint
from exporter.targets.layout import model_index
from tests.families import FAMILIES, control
from tests.parity.torch_target import make_artifact
from tests.tiny import make_tokenizer

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def nets(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders as people download them."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(3)
    made = UNet2DConditionModel.from_pretrained(tiny / "unet")
    folders = [tmp_path_factory.mktemp("nets") / name for name in ("canny", "depth")]
    for folder in folders:
        control(made).save_pretrained(folder)
    return folders


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with two ControlNets, written by diffusers."""
    root = tmp_path_factory.mktemp("pair")
    torch.manual_seed(4)
    FAMILIES["two_controlnets"](make_tokenizer(root / "tokenizer")).save_pretrained(root / "pair")
    return root / "pair"


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def test_one_is_laid_over(tiny: Path, nets: list[Path]) -> None:
    merged = open_source(tiny, controlnets=[str(nets[0])])
    assert merged.pipeline_class == "StableDiffusionControlNetPipeline"
    parts = {c.name: c for c in components_of(merged)}
    assert list(parts) == ["text_encoder", "controlnet", "unet", "vae_decoder", "vae_encoder"]
    for stored in (merged.stored("controlnet"), merged.reference_stored("controlnet")):
        expected = state_of(nets[0])
        assert set(stored) == set(expected)
        assert all(torch.equal(stored[name].load(), value) for name, value in expected.items())
    given = [o.name.replace("res_samples", "additional_residuals") for o in parts["controlnet"].outputs[:-1]]
    assert given == [i.name for i in parts["unet"].inputs[3:-1]]
    (record,) = merged.overlays
    assert (record.kind, record.source) == ("controlnet", str(nets[0]))
    assert {file.path for file in record.files} == {"config.json", WEIGHTS}
    assert open_source(tiny, controlnets=[str(nets[0] / "..") + f"/{nets[0].name}"]).overlays


def test_several_keep_their_order(tiny: Path, nets: list[Path]) -> None:
    merged = open_source(tiny, controlnets=list(map(str, nets)))
    for folder, net in zip(("controlnet", "controlnet_1"), nets, strict=True):
        expected = state_of(net)
        stored = merged.stored(folder)
        assert all(torch.equal(stored[name].load(), value) for name, value in expected.items())
    pipeline = from_checkpoint(str(tiny), controlnets=list(map(str, nets)))
    for held, net in zip(pipeline.controlnet.nets, nets, strict=True):
        assert torch.equal(held.controlnet_mid_block.weight, state_of(net)["controlnet_mid_block.weight"])


def test_its_own_give_way(pair: Path, tiny: Path, nets: list[Path]) -> None:
    merged = open_source(pair, controlnets=[str(nets[1])])
    assert merged.pipeline_class == "StableDiffusionControlNetPipeline"
    assert [n for n in merged.component_classes if n.startswith("controlnet")] == ["controlnet"]
    assert not (merged.root / "controlnet_1").exists()
    stored = merged.stored("controlnet")["controlnet_mid_block.weight"]
    assert torch.equal(stored.load(), state_of(nets[1])["controlnet_mid_block.weight"])


def test_those_of_another_checkpoint(tiny: Path, pair: Path) -> None:
    merged = open_source(tiny, controlnets=[str(pair)])
    expected = state_of(pair / "controlnet_1")
    assert torch.equal(
        merged.stored("controlnet_1")["controlnet_mid_block.weight"].load(),
        expected["controlnet_mid_block.weight"],
    )


def test_several_in_a_checkpoint(pair: Path) -> None:
    index = json.loads((pair / "model_index.json").read_text())
    assert index["controlnet"] == ["diffusers", "MultiControlNetModel"], "as diffusers writes them"
    checkpoint = resolve(pair)
    assert checkpoint.component_classes["controlnet_1"] == ("diffusers", "ControlNetModel")
    assert any(file.path == f"controlnet_1/{WEIGHTS}" for file in checkpoint.files)
    names = [path.relative_to(pair).as_posix() for path in pair.rglob("*") if path.is_file()]
    assert f"controlnet_1/{WEIGHTS}" in select_files(names, index)
    assert "controlnet_1" not in components(index)
    held = [c for c in components_of(checkpoint) if c.name != "controlnet_1"]
    assert model_index(checkpoint, held)["controlnet"] == [None, None], "one of two is none"
    assert model_index(checkpoint, components_of(checkpoint))["controlnet"] == index["controlnet"]


def test_the_reference_is_found_again(tiny: Path, nets: list[Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(nets[0], tmp_path / "net"))
    merged = open_source(tiny, controlnets=[str(copy)])
    root = make_artifact(merged, tmp_path / "artifact", components=("controlnet",))
    document = json.loads((root / MANIFEST).read_text())
    document["source"]["overlays"] = [o.model_dump(mode="json") for o in merged.overlays]
    (root / MANIFEST).write_text(json.dumps(document))
    again = reference_for(Artifact.open(root), None)
    assert again.pipeline_class == merged.pipeline_class
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"norm_eps": 1e-3}))
    with pytest.raises(ArtifactError, match="not what the artifact was made with"):
        reference_for(Artifact.open(root), None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_class_name": "ControlNetUnionModel"}, "is a ControlNetUnionModel, not a ControlNetModel"),
        ({"cross_attention_dim": 48}, r"takes text of 48 channels \(cross_attention_dim\), the UNet .* 32"),
        ({"block_out_channels": [32, 32]}, r"block_out_channels is \[32, 32\], that of .* \[32, 64\]"),
        ({"layers_per_block": 2}, "layers_per_block is"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type is text_time"),
        ({"in_channels": 9}, "reads 9 channels, the latents have 4"),
        ({"conditioning_embedding_out_channels": [8, 16]}, "reads a picture 2 times as large as the latents"),
        ({"global_pool_conditions": True}, "global_pool_conditions = True is not converted"),
        ({"num_class_embeds": 3}, "num_class_embeds = 3 is not converted"),
    ],
)
def test_one_that_does_not_fit(
    tiny: Path, nets: list[Path], tmp_path: Path, change: dict[str, object], said: str
) -> None:
    copy = Path(shutil.copytree(nets[0], tmp_path / "net"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=said):
        components_of(open_source(tiny, controlnets=[str(copy)]))


def test_sources_that_are_none(tiny: Path, nets: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, said in (
        (nets[0] / WEIGHTS, "is one file"),
        (tmp_path / "empty", "neither a config.json nor a model_index.json"),
        (tmp_path / "nowhere", "is not there"),
        (tiny, "without a ControlNet"),
    ):
        with pytest.raises(CheckpointError, match=said):
            open_source(tiny, controlnets=[str(source)])


def test_a_model_without_such_a_pipeline(tiny: Path, nets: list[Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "lcm"))
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(
        json.dumps(index | {"_class_name": "LatentConsistencyModelPipeline"})
    )
    with pytest.raises(CheckpointError, match="a ControlNet is laid over StableDiffusionPipeline, "):
        open_source(copy, controlnets=[str(nets[0])])


def test_weights_that_are_gone(tiny: Path, nets: list[Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(nets[0], tmp_path / "net"))
    (copy / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="has no safetensors weights"):
        open_source(tiny, controlnets=[str(copy)])
