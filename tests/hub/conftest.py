"""A running Hub for a test, and a client whose cache is empty."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hub.server import TOKEN, HubServer

Client = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub-store") as server:
        yield server


@pytest.fixture
def online(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """This process talks to the test Hub with an empty cache and without a token.

    huggingface_hub reads its settings once, at import; they are set where it keeps them.
    """
    from huggingface_hub import constants, file_download, hf_api

    cache = tmp_path / "hf-home" / "hub"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    return hub


@pytest.fixture
def client(hub: HubServer, tmp_path: Path) -> Client:
    """`client("download", "org/name", token=True)`: the command line in a process of its own."""

    def run(
        *arguments: str, token: bool = False, home: str = "hf-home", **more: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "exporter", *arguments],
            env=environment(hub, tmp_path / home, token=token) | more,
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run


def environment(hub: HubServer, home: Path, *, token: bool) -> dict[str, str]:
    dropped = {"HF_HUB_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}
    kept = {k: v for k, v in os.environ.items() if k not in dropped}
    return kept | {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "OMP_NUM_THREADS": "1",
        **({"HF_TOKEN": TOKEN} if token else {}),
    }  # fmt: skip
