"""Odd and bad sources through `--to safetensors`, and that the same request gives the same bytes."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from exporter.artifact import Artifact
from exporter.checkpoints import resolve
from exporter.conversion import convert, make_plan
from exporter.errors import ArtifactError, CheckpointError
from exporter.parity import verify
from exporter.targets import get_target

INDEX = "unet/diffusion_pytorch_model.safetensors.index.json"
SETTINGS = {"steps": 1, "samples": 1, "prompts": ["a red star"], "pipeline": False}


def write(source: Path, out: Path, *, allow_pickle: bool = False, **options: object) -> Path:
    intake = {"allow_pickle": allow_pickle}
    convert(make_plan(str(source), "safetensors", out, options, verify=False, intake=intake))
    return out


def hashes(root: Path) -> dict[str, str]:
    return {file.path: file.sha256 for file in Artifact.open(root).manifest.all_files()}


@pytest.fixture(scope="module")
def sharded(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tiny, tmp_path_factory.mktemp("sharded") / "out", max_shard_size="300KB")


@pytest.fixture
def copy(sharded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded, tmp_path / "copy"))


def test_the_same_request_gives_the_same_bytes_and_the_hashes_are_those_on_disk(
    tiny: Path, sharded: Path, tmp_path: Path
) -> None:
    again = write(tiny, tmp_path / "again", max_shard_size="300KB")
    assert hashes(again) == hashes(sharded)
    assert Artifact.open(again).changed_files() == []
    assert not list(again.rglob(".*.part"))


def test_shards_smaller_than_a_tensor(tiny: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    out = write(tiny, tmp_path / "out", max_shard_size="20KB")
    names = json.loads((out / INDEX).read_text())["weight_map"]
    large = {n for n, t in resolve(tiny).stored("unet").items() if t.nbytes > 20_000}
    assert large
    for name in large:
        assert [other for other, shard in names.items() if shard == names[name]] == [name], "by itself"
    unet = UNet2DConditionModel.from_pretrained(out / "unet", local_files_only=True)
    before = load_file(tiny / "unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


def test_tied_weights(tiny: Path, tmp_path: Path) -> None:
    """Two names of one tensor in a pickle: written once where the class ties them again, else twice."""
    from transformers import T5Config, T5EncoderModel

    root = Path(shutil.copytree(tiny, tmp_path / "tied"))
    config = T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=4)
    encoder = T5EncoderModel(config)
    encoder.config.save_pretrained(root / "text_encoder_2")
    state = encoder.state_dict()
    assert state["shared.weight"].data_ptr() == state["encoder.embed_tokens.weight"].data_ptr()
    torch.save(state, root / "text_encoder_2/pytorch_model.bin")
    index = json.loads((root / "model_index.json").read_text())
    index["text_encoder_2"] = ["transformers", "T5EncoderModel"]
    (root / "model_index.json").write_text(json.dumps(index))
    unet = root / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(unet)
    weights["conv_norm_out.bias"] = weights["conv_norm_out.weight"]  # no class ties these
    torch.save(weights, unet.with_suffix(".bin"))
    unet.unlink()

    out = write(root, tmp_path / "out", allow_pickle=True)
    written = load_file(out / "text_encoder_2/model.safetensors")
    assert "shared.weight" in written and "encoder.embed_tokens.weight" not in written
    loaded = T5EncoderModel.from_pretrained(out / "text_encoder_2", local_files_only=True)
    assert torch.equal(loaded.encoder.embed_tokens.weight, state["shared.weight"])
    both = load_file(out / "unet/diffusion_pytorch_model.safetensors")
    assert torch.equal(both["conv_norm_out.bias"], weights["conv_norm_out.weight"])
    assert torch.equal(both["conv_norm_out.weight"], weights["conv_norm_out.weight"])
    assert Artifact.open(out).manifest.component("unet").details["tied"] == {}


def test_a_bfloat16_source(tiny: Path, tmp_path: Path) -> None:
    from tests.tiny import make_tiny

    source = make_tiny(tmp_path / "bf16", seed=2, dtype=torch.bfloat16)
    before = load_file(source / "unet/diffusion_pytorch_model.safetensors")
    assert before["conv_in.weight"].dtype == torch.bfloat16
    same = write(source, tmp_path / "same", max_shard_size="300KB")
    assert Artifact.open(same).manifest.component("unet").dtype == "bfloat16"
    for name, tensor in resolve(same).stored("unet").items():
        assert torch.equal(tensor.load(), before[name])
    wide = write(source, tmp_path / "wide", dtype="float32")
    for name, tensor in resolve(wide).stored("unet").items():
        assert tensor.dtype == "F32" and torch.equal(tensor.load(), before[name].float())
    report = verify(same, components=["unet"], cache=None, **SETTINGS)
    assert report.verdict == "PASS", report.summary


def drop_a_shard(root: Path) -> None:
    sorted((root / "unet").glob("*.safetensors"))[1].unlink()


def climb_out(root: Path) -> None:
    index = json.loads((root / INDEX).read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = "../vae/diffusion_pytorch_model.safetensors"
    (root / INDEX).write_text(json.dumps(index))


def lie_about_length(root: Path) -> None:
    path = sorted((root / "unet").glob("*.safetensors"))[0]
    raw = path.read_bytes()
    path.write_bytes(struct.pack("<Q", len(raw) * 2) + raw[8:])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (drop_a_shard, "which is missing"),
        (climb_out, "outside its folder"),
        (lie_about_length, "its header claims"),
    ],
)
def test_damaged_shards_are_refused_as_a_source_and_as_an_artifact(
    copy: Path, tmp_path: Path, harm, message: str
) -> None:
    harm(copy)
    with pytest.raises(CheckpointError, match=message):
        write(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    record = Artifact.open(copy).manifest.component("unet")
    with pytest.raises(ArtifactError, match=message):
        get_target("safetensors").open(copy, record)


def test_float8_loads_back_as_the_storage_of_layerwise_casting(tiny: Path, tmp_path: Path) -> None:
    """diffusers casts to float8 when it has loaded: the very bytes that the artifact holds."""
    from diffusers import UNet2DConditionModel

    out = write(tiny, tmp_path / "out", dtype="float8_e4m3fn")
    stored = load_file(out / "unet/diffusion_pytorch_model.safetensors")
    unet = UNet2DConditionModel.from_pretrained(
        out / "unet", torch_dtype=torch.float32, local_files_only=True
    )
    sample, text = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 32)
    with torch.no_grad():
        expected = unet(sample, 5, text).sample
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    inside = dict(unet.named_parameters())
    eight = [name for name, value in stored.items() if value.dtype == torch.float8_e4m3fn]
    same = [n for n in eight if inside[n].dtype == torch.float8_e4m3fn]
    assert len(same) > 0.9 * len(eight) > 0
    for name in same:
        assert torch.equal(inside[name].view(torch.uint8), stored[name].view(torch.uint8)), name
    with torch.no_grad():
        found = unet(sample, 5, text).sample
    # Only the vectors (biases) that diffusers casts and the artifact keeps make a difference.
    assert float((found - expected).norm() / expected.norm()) <= 0.05
