"""One conversion of the tiny model, shared; tests that damage something copy it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from exporter.conversion import convert, make_plan


@pytest.fixture(scope="session")
def program(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All components as exported programs, float32."""
    out = tmp_path_factory.mktemp("pt2") / "tiny-pt2"
    return convert(make_plan(str(tiny), "pt2", out, {}, verify=False)).artifact.root


@pytest.fixture
def copy(program: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(program, tmp_path / "copy"))


@pytest.fixture(scope="session")
def compiled(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text encoder, compiled here for this processor."""
    out = tmp_path_factory.mktemp("compiled") / "tiny-compiled"
    plan = make_plan(str(tiny), "pt2", out, {"compile": True}, components=["text_encoder"], verify=False)
    return convert(plan).artifact.root
