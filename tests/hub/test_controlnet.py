"""A ControlNet alone in a repository, as people publish them: no model_index.json, its config and weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from exporter.checkpoints import open_source
from exporter.checkpoints.hub import download
from exporter.errors import CheckpointError, NetworkError
from tests.families import control
from tests.hub.server import HubServer

NAME = "someone/canny"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def net(tiny: Path, tmp_path: Path) -> Path:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(1)
    folder = tmp_path / "canny"
    control(UNet2DConditionModel.from_pretrained(tiny / "unet")).save_pretrained(folder)
    (folder / "control_canny.pth").write_bytes(b"pickle" * 100)
    (folder / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"half" * 100)
    return folder


def test_it_is_fetched_and_laid_over(
    online: HubServer, tiny: Path, net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online.store.upload(NAME, net)
    merged = open_source(tiny, controlnets=[NAME])
    expected = load_file(net / WEIGHTS)
    stored = merged.stored("controlnet")
    assert set(stored) == set(expected)
    assert all(torch.equal(stored[name].load(), value) for name, value in expected.items())
    snapshot = download(NAME, part=True)
    assert snapshot.kind == "part" and snapshot.fetched == 0
    assert [file.path for file in snapshot.files] == ["config.json", WEIGHTS]
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download(NAME, part=True).offline
    assert open_source(tiny, controlnets=[NAME]).overlays[0].source == NAME
    (snapshot.root / WEIGHTS).unlink()
    with pytest.raises(NetworkError, match="lacks: the weights of someone/canny"):
        download(NAME, part=True)


def test_repositories_that_hold_none(online: HubServer, tiny: Path, net: Path) -> None:
    online.store.upload(NAME, net)
    with pytest.raises(CheckpointError, match=r"no model_index\.json"):
        download(NAME)
    (net / WEIGHTS).unlink()
    (net / "diffusion_pytorch_model.fp16.safetensors").unlink()
    online.store.upload("someone/pickled", net)
    with pytest.raises(CheckpointError, match="no safetensors weights beside its config"):
        open_source(tiny, controlnets=["someone/pickled"])
