"""Every way a source can be wrong has its own sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from exporter.checkpoints import resolve
from exporter.errors import CheckpointError, NetworkError


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def test_a_folder_is_found_with_all_its_files(tiny: Path) -> None:
    checkpoint = resolve(tiny)
    checkpoint.validate()
    assert checkpoint.pipeline_class == "StableDiffusionPipeline"
    names = {f.path for f in checkpoint.files}
    assert {"model_index.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer/vocab.json"} <= names
    stored = checkpoint.stored("unet")
    theirs = load_file(tiny / "unet/diffusion_pytorch_model.safetensors")
    assert set(stored) == set(theirs)
    assert all(torch.equal(stored[n].load(), t) for n, t in theirs.items())


@pytest.mark.parametrize("source", ["no/such/folder/here", "./nowhere", "nowhere"])
def test_a_source_that_does_not_exist(source: str) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        resolve(source)


def test_a_hub_id_without_a_network_is_a_network_error() -> None:
    with pytest.raises(NetworkError, match="Hub cannot be reached"):
        resolve("nobody/nothing-of-this-name")


def test_a_folder_without_model_index(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model_index\.json"):
        resolve(tmp_path)


def test_an_unknown_builtin() -> None:
    with pytest.raises(CheckpointError, match="no embedded checkpoint"):
        resolve("builtin:nonsense")


def test_a_model_index_that_points_outside(copy: Path) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    index["../../etc"] = ["diffusers", "UNet2DConditionModel"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside itself"):
        resolve(copy)


def test_truncated_weights_are_seen_before_any_work(copy: Path) -> None:
    path = copy / "unet/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="not a usable safetensors file"):
        resolve(copy).validate()


def test_pickled_weights_are_refused_with_the_reason(copy: Path) -> None:
    weights = copy / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match="pickle can run code"):
        resolve(copy).validate()


def shard(folder: Path, stem: str = "diffusion_pytorch_model") -> None:
    """Split a component's weights into two shards with an index."""
    whole = folder / f"{stem}.safetensors"
    tensors = load_file(whole)
    names = sorted(tensors)
    parts = {
        f"{stem}-00001-of-00002.safetensors": names[: len(names) // 2],
        f"{stem}-00002-of-00002.safetensors": names[len(names) // 2 :],
    }
    for file, members in parts.items():
        save_file({n: tensors[n] for n in members}, folder / file)
    weight_map = {n: file for file, members in parts.items() for n in members}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    whole.unlink()


def test_shards_are_one_set_of_weights(tiny: Path, copy: Path) -> None:
    shard(copy / "unet")
    whole, parts = resolve(tiny).stored("unet"), resolve(copy).stored("unet")
    assert set(whole) == set(parts)
    assert all(torch.equal(whole[n].load(), parts[n].load()) for n in whole)


def test_a_missing_shard(copy: Path) -> None:
    shard(copy / "unet")
    (copy / "unet/diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="which is missing"):
        resolve(copy).validate()


def test_an_index_that_climbs_out(copy: Path) -> None:
    shard(copy / "unet")
    index = copy / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        resolve(copy).validate()


def test_a_variant_is_preferred_when_asked_for(tiny: Path, copy: Path) -> None:
    folder = copy / "unet"
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    save_file({n: t.half() for n, t in tensors.items()}, folder / "diffusion_pytorch_model.fp16.safetensors")
    assert {t.dtype for t in resolve(copy).stored("unet").values()} == {"F32"}
    assert {t.dtype for t in resolve(copy, variant="fp16").stored("unet").values()} == {"F16"}
