"""Nothing a checkpoint brings is run or followed out of its folder."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from exporter import pipeline
from exporter.artifact import Artifact, check_inside
from exporter.checkpoints import open_source, resolve
from exporter.checkpoints.pickled import read_state_dict
from exporter.errors import ArtifactError, CheckpointError
from exporter.parity.sources import reference_for
from tests import original_layout
from tests.parity.torch_target import make_artifact


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": ["pipeline", "MyPipeline"]}, "a pipeline of its own .* never runs code"),
        ({"_class_name": "os.system"}, "names no pipeline"),
        ({"unet": ["my_unet", "MyUNet"]}, "takes MyUNet from a module of its own .'my_unet'.; .* never runs"),
        ({"unet": ["os", "system"]}, "module of its own"),
        ({"unet": ["../pipelines", "X"]}, "module of its own"),
        ({"unet": ["diffusers", "X; import os"]}, "malformed entry 'unet'"),
        ({"unet": [["diffusers"], "X"]}, "malformed entry 'unet'"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "maps classes to files"),
        ({"..": ["diffusers", "X"]}, "outside itself"),
        ({"/etc": ["diffusers", "X"]}, "outside itself"),
        ({"a\x00b": ["diffusers", "X"]}, "outside itself"),
    ],
)
def test_a_model_index_that_asks_for_code(copy: Path, changes: dict[str, Any], message: str) -> None:
    edit(copy / "model_index.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        resolve(copy)


def test_libraries_of_diffusers_are_known(copy: Path) -> None:
    edit(copy / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    assert "safety_checker" in resolve(copy).component_classes


@pytest.mark.parametrize("file", ["unet/config.json", "tokenizer/tokenizer_config.json"])
def test_a_config_that_asks_for_code(copy: Path, file: str) -> None:
    edit(copy / file, auto_map={"AutoModel": "modeling.Mine"})
    with pytest.raises(CheckpointError, match=rf"{file} of .* asks for code of its own .auto_map."):
        resolve(copy)


def test_a_python_file_in_the_folder_is_never_run(copy: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for place in ("pipeline.py", "unet/unet.py", "tokenizer/tokenizer.py"):
        (copy / place).write_text(f"open({str(mark)!r}, 'w')\n")
    resolve(copy).validate()
    pipeline.load(copy)
    assert not mark.exists()
    edit(copy / "model_index.json", _class_name="OsSystem")
    with pytest.raises(CheckpointError, match="no pipeline 'OsSystem'"):
        pipeline.load(copy)


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "unet/config.json", "vae"])
def test_a_link_out_of_the_folder(copy: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    (copy / name).rename(outside)
    (copy / name).symlink_to(outside)
    with pytest.raises(CheckpointError, match=f"{name} of .* is a link out of the checkpoint's folder"):
        resolve(copy)
    with pytest.raises(CheckpointError, match="is a link out"):
        open_source(copy.parent / "copy", vae=str(copy / "vae"))


def test_links_inside_are_followed_and_so_are_those_of_the_hubs_cache(copy: Path, tmp_path: Path) -> None:
    (copy / "unet/config.json").rename(copy / "unet/real.json")
    (copy / "unet/config.json").symlink_to("real.json")
    resolve(copy).validate()
    repository = tmp_path / "hub" / "models--me--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(copy, snapshot)
    (repository / "blobs").mkdir()
    weights = snapshot / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(repository / "blobs" / "abc")
    weights.symlink_to("../../../blobs/abc")
    resolve(snapshot).validate()
    weights.unlink()
    weights.symlink_to(copy / "unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match="is a link out"):
        resolve(snapshot)


@pytest.mark.parametrize(
    "path", ["", ".", "..", "/etc/passwd", "a/../../b", "a\\b", "C:/x", "a\x00b", "a" * 300, "\ud800", "a\nb"]
)
def test_a_manifest_path_that_leaves_its_folder(path: str) -> None:
    with pytest.raises(ArtifactError, match="outside the artifact"):
        check_inside(path)


class Bomb:
    """What a hostile pickle does: run something when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (open, (str(self.mark), "w"))


def test_a_ckpt_is_refused_by_default_and_read_without_running_it(tiny: Path, tmp_path: Path) -> None:
    state = original_layout.stable_diffusion_1(tiny)
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": state, "global_step": 7}, path)
    with pytest.raises(CheckpointError, match="is a pickle, which can run code when it is opened") as caught:
        open_source(path, config=str(tiny))
    assert "--allow-pickle" in (caught.value.hint or "")
    opened = open_source(path, config=str(tiny), allow_pickle=True)
    base = resolve(tiny)
    for folder in ("unet", "vae", "text_encoder"):
        for name, tensor in base.stored(folder).items():
            assert torch.equal(opened.stored(folder)[name].load(), tensor.load())
            assert bytes(opened.stored(folder)[name].raw()) == bytes(tensor.raw())
    assert opened.opened_with["pickle"] is True

    artifact = Artifact.open(make_artifact(opened, tmp_path / "artifact", components=["text_encoder"]))
    with pytest.raises(ArtifactError, match="is a pickle"):
        reference_for(artifact, None)  # what a manifest says does not count as permission
    assert reference_for(artifact, None, allow_pickle=True).files == opened.files

    mark = tmp_path / "ran"
    torch.save({"state_dict": state, "x": Bomb(mark)}, path)
    with pytest.raises(CheckpointError, match="asks for more than tensors when it is opened"):
        open_source(path, config=str(tiny), allow_pickle=True)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "compress", "message"),
    [
        ("../../evil", zipfile.ZIP_STORED, "path outside its archive"),
        ("/evil", zipfile.ZIP_STORED, "path outside its archive"),
        ("archive/data/9", zipfile.ZIP_DEFLATED, "compressed entries"),
    ],
)
def test_hostile_archives(tmp_path: Path, name: str, compress: int, message: str) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"a": torch.ones(2)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"0" * 100_000, compress_type=compress)
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(path, allow=True)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04nothing", b"\x80\x02}q\x00.", b"junk" * 100])
def test_pickles_that_are_none(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        open_source(path, allow_pickle=True)


def lone(**tensors: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name.replace("__", "."): tensor for name, tensor in tensors.items()}


ONE = torch.zeros(1, 4, 3, 3)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"x.lora_down.weight": ONE}, "is a LoRA, not a model"),
        ({"model.diffusion_model.joint_blocks.0.x.weight": ONE}, r"lacks 'x_embedder\.proj\.weight'"),
        ({"double_blocks.0.img_attn.qkv.weight": ONE}, r"lacks 'img_in\.weight'"),
        ({"control_model.input_blocks.0.0.weight": ONE}, "a ControlNet"),
        ({"first_stage_model.encoder.conv_in.weight": ONE}, "an autoencoder alone"),
        ({"text_model.embeddings.token_embedding.weight": ONE}, "a text encoder alone"),
        ({"model.diffusion_model.input_blocks.0.0.weight": ONE}, "no text encoder"),
        ({"something": ONE}, "no model that this version knows .1 tensors, such as 'something'"),
        ({}, "no model that this version knows .0 tensors"),
    ],
)
def test_other_files_are_told_apart(tmp_path: Path, state: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_source(original_layout.save(state, tmp_path / "x.safetensors"))


def test_files_that_are_no_model(tiny: Path, tmp_path: Path) -> None:
    text = tmp_path / "model.txt"
    text.write_text("no model")
    with pytest.raises(CheckpointError, match=r"takes \.safetensors, and \.ckpt with --allow-pickle"):
        open_source(text)
    path = original_layout.save(original_layout.stable_diffusion_1(tiny), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="has 514 tokens; the bundled tokenizer of CLIP has 49408"):
        open_source(path)
    with pytest.raises(CheckpointError, match=r"--tokenizer .* holds no vocab\.json"):
        open_source(path, tokenizer=str(tmp_path))
    with pytest.raises(CheckpointError, match="is no folder"):
        open_source(path, config="nowhere")
    from exporter.checkpoints.clip_tokenizer import tokenizer_files

    big = tmp_path / "clip"
    big.mkdir()
    for name, data in tokenizer_files().items():
        (big / name).write_bytes(data)
    with pytest.raises(CheckpointError, match="it has 49408 tokens, the encoder 514"):
        open_source(path, tokenizer=str(big))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(CheckpointError, match="not a usable safetensors file"):
        open_source(path, config=str(tiny))


def test_the_bundled_tokenizer_is_clips(tmp_path: Path) -> None:
    """Token ids as published with CLIP: `a photo of a cat` is 320 1125 539 320 2368."""
    from transformers import CLIPTokenizer

    from exporter.checkpoints.clip_tokenizer import VOCABULARY, tokenizer_files

    for name, data in tokenizer_files(pad="!").items():
        (tmp_path / name).write_bytes(data)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == VOCABULARY
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer.pad_token_id == 0 and tokenizer.model_max_length == 77
