"""IP-Adapters on a shelf of the Hub: several files, each fetched with the one encoder that goes with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from exporter.checkpoints import open_source
from exporter.errors import CheckpointError, NetworkError
from tests import ip_adapters
from tests.hub.server import HubServer

NAME = "someone/adapters"
FILE = "models/ip-adapter_tiny.safetensors"


@pytest.fixture
def shelf(tiny: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "shelf"
    ip_adapters.write(tiny / "unet", folder / "models")
    ip_adapters.encoder(projected=36).save_pretrained(folder / "sdxl_models" / "image_encoder")
    shutil.copy(folder / FILE, folder / "sdxl_models" / "ip-adapter_vit-h.safetensors")
    (folder / "models" / "ip-adapter_tiny.bin").write_bytes(b"pickle" * 100)
    (folder / "models" / "image_encoder" / "pytorch_model.bin").write_bytes(b"pickle" * 100)
    (folder / "README.md").write_text("# Adapters\n")
    return folder


def test_only_what_is_needed_is_fetched(
    online: HubServer, tiny: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants, snapshot_download

    online.store.upload(NAME, shelf)
    merged = open_source(tiny, ip_adapters=[f"{NAME}:{FILE}"])
    expected = load_file(shelf / "models" / "image_encoder" / "model.safetensors")
    stored = merged.stored("image_encoder")
    assert set(stored) == set(expected)
    assert all(torch.equal(stored[name].load(), value) for name, value in expected.items())
    place = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_ip.0.weight"
    assert torch.equal(
        merged.stored("unet")[place].load(), load_file(shelf / FILE)["ip_adapter.1.to_k_ip.weight"]
    )
    root = Path(snapshot_download(NAME, local_files_only=True))
    fetched = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    encoder = "models/image_encoder"
    assert fetched == {FILE, f"{encoder}/config.json", f"{encoder}/model.safetensors"}
    assert merged.overlays[0].source == f"{NAME}:{FILE}"

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again = open_source(tiny, ip_adapters=[f"{NAME}:{FILE}"])
    assert again.overlays == merged.overlays
    with pytest.raises(NetworkError, match="someone/other is no folder here, not in the local Hub cache"):
        open_source(tiny, ip_adapters=["someone/other:a.safetensors"])


def test_the_encoder_that_fits_is_taken_from_elsewhere(online: HubServer, tiny: Path, shelf: Path) -> None:
    online.store.upload(NAME, shelf)
    merged = open_source(tiny, ip_adapters=[f"{NAME}:sdxl_models/ip-adapter_vit-h.safetensors"])
    assert merged.config("image_encoder")["projection_dim"] == ip_adapters.PROJECTED


def test_a_file_has_to_be_named_where_there_are_several(online: HubServer, tiny: Path, shelf: Path) -> None:
    online.store.upload(NAME, shelf)
    with pytest.raises(CheckpointError, match="holds 2 files that could be an IP-Adapter") as error:
        open_source(tiny, ip_adapters=[NAME])
    assert FILE in str(error.value.hint)
    with pytest.raises(CheckpointError, match=r"ip-adapter_tiny\.bin is a pickle"):
        open_source(tiny, ip_adapters=[f"{NAME}:models/ip-adapter_tiny.bin"])
    with pytest.raises(CheckpointError, match=r"no file gone\.bin in someone/adapters"):
        open_source(tiny, ip_adapters=[f"{NAME}:gone.bin"])
