"""Weights read shard by shard are the weights, and what was read of a file is handed back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from exporter import pipeline, techniques
from exporter.checkpoints import StoredTensor, open_source
from exporter.errors import CheckpointError, UsageError
from exporter.techniques.base import modules
from exporter.techniques.sharded_loading import ShardedLoading

NAME = "sharded-loading"


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model in float16, its UNet in several files."""
    folder = tmp_path_factory.mktemp("halves")
    pipeline.load("builtin:shapes").to(torch.float16).save_pretrained(folder, max_shard_size="3MB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 2
    return folder


def resident(folder: Path) -> int:
    """Bytes of the files below a folder that this process has mapped and in memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split(maxsplit=5)
        if "-" in head[0] and not head[0].endswith(":"):
            inside = len(head) == 6 and head[5].startswith(str(folder))
        elif inside and head[0] == "Rss:":
            total += int(head[1]) * 1024
    return total


def weights(painter: Any) -> dict[str, torch.Tensor]:
    return {
        f"{type(part).__name__}.{name}": tensor
        for part in modules(painter)
        for name, tensor in part.state_dict().items()
    }


def test_they_are_the_same_bits_as_without(halves: Path) -> None:
    plain, sharded = (weights(pipeline.load(halves, techniques=given)) for given in ([], [NAME]))
    assert plain.keys() == sharded.keys() and len(plain) > 300
    for name, tensor in plain.items():
        assert tensor.dtype == sharded[name].dtype and torch.equal(tensor, sharded[name]), name


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps")
def test_what_was_read_to_be_cast_is_handed_back(halves: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kept() -> int:
        checkpoint = open_source(str(halves))  # whose files stay mapped
        before = resident(halves)
        parts = ShardedLoading().parts(checkpoint, torch.device("cpu"))
        assert {part.dtype for part in parts.values()} == {torch.float32}
        return resident(halves) - before

    handed_back = kept()
    monkeypatch.setattr(StoredTensor, "release", lambda self: None)
    # A system reads some pages around the one that is asked for, and tensors here are a few pages long.
    assert handed_back < 0.7 * kept()


def test_as_stored_they_lie_in_the_files(halves: Path) -> None:
    stored = pipeline.load(halves, techniques=[{NAME: {"dtype": "stored"}}])
    weight = stored.unet.conv_in.weight
    assert weight.dtype == torch.float16
    # Copy-on-write: written to, it leaves the file as it is.
    was = weight.clone()
    weight.data.zero_()
    again = pipeline.load(halves, techniques=[{NAME: {"dtype": "stored"}}])
    assert again.unet.conv_in.weight.equal(was) and was.any()


def test_it_goes_with_others_and_is_undone_with_them(halves: Path) -> None:
    painter = pipeline.load(halves, techniques=[NAME, "channels-last"])
    assert painter.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    undo = techniques.apply(painter, [NAME, "fused-qkv"])
    undo()


def test_a_pipeline_that_is_loaded_cannot_be_loaded_so() -> None:
    with pytest.raises(UsageError, match="acts while a checkpoint is read") as raised:
        techniques.apply(pipeline.load("builtin:shapes"), [NAME])
    assert "exporter.load" in str(raised.value.hint)


def test_a_missing_shard_is_told_before_anything_is_read(halves: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(halves, broken)
    sorted((broken / "unet").glob("*.safetensors"))[1].unlink()
    with pytest.raises(CheckpointError, match="unet"):
        pipeline.load(broken, techniques=[NAME])


def test_wrong_techniques_are_refused_before_anything_is_read() -> None:
    with pytest.raises(UsageError, match="works on a transformer"):
        pipeline.load("builtin:shapes", techniques=["first-block-cache"])
