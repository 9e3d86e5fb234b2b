"""`exporter cache`, and the switches around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter import cache
from tests.cli.runner import invoke


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EXPORTER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_info_and_clear(folder: Path) -> None:
    cache.write(cache.SKELETONS, "a", bytes(5000))
    ran = invoke("cache", "info")
    assert ran.code == 0 and "skeletons" in ran.stdout and "5.0 kB" in ran.stdout and "2.0 GB" in ran.stdout
    document = invoke("cache", "info", "--json").document
    assert document["folder"] == str(folder)
    assert [(r["name"], r["files"], r["bytes"]) for r in document["rooms"]] == [
        ("skeletons", 1, 5000),
        ("parity", 0, 0),
        ("recordings", 0, 0),
    ]
    assert invoke("cache", "clear", "--room", "parity", "--json").document["rooms"][0]["bytes"] == 0
    assert invoke("cache", "clear", "-q").stdout == "5000\n"
    assert invoke("cache", "info", "-q").stdout == "0\n"


def test_requests_that_make_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    invoke("cache", "polish").failed(2, "polish", "info", "clear")
    invoke("cache", "info", "--room", "attic").failed(2, "attic", "skeletons")
    monkeypatch.setenv("EXPORTER_CACHE_LIMIT", "plenty")
    invoke("cache", "info").failed(2, "EXPORTER_CACHE_LIMIT", "plenty")


def test_no_cache_keeps_nothing(tiny: Path, tmp_path: Path) -> None:
    arguments = ["convert", tiny, "--to", "onnx", "--component", "text_encoder", "--no-verify"]
    assert invoke(*arguments, "-o", tmp_path / "a", "--no-cache").code == 0
    assert cache.SKELETONS.files() == []
    assert invoke(*arguments, "-o", tmp_path / "b").code == 0
    assert len(cache.SKELETONS.files()) == 1
