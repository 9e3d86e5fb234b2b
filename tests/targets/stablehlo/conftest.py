"""One conversion of the tiny model, shared; tests that damage something copy it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from exporter.conversion import convert, make_plan

pytest.importorskip("jax")


@pytest.fixture(scope="session")
def program(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All components, float32, for every platform."""
    out = tmp_path_factory.mktemp("stablehlo") / "tiny-stablehlo"
    return convert(make_plan(str(tiny), "stablehlo", out, {}, verify=False)).artifact.root


@pytest.fixture
def copy(program: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(program, tmp_path / "copy"))
