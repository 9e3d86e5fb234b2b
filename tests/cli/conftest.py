"""One real conversion, shared by the tests that look at its result."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.runner import Ran, spawn


@dataclass(frozen=True)
class Converted:
    """The artifact and what the command that made it printed under `--json`."""

    root: Path
    ran: Ran


@pytest.fixture(scope="session")
def converted(tiny: Path, tmp_path_factory: pytest.TempPathFactory, user_cache: Path) -> Converted:
    """`exporter convert TINY --to openvino --json`, verified, as a process of its own."""
    root = tmp_path_factory.mktemp("converted") / "tiny-ov"
    ran = spawn("convert", tiny, "--to", "openvino", "-o", root, "--json")
    assert ran.code == 0, ran
    return Converted(root, ran)


@pytest.fixture
def artifact(converted: Converted, tmp_path: Path) -> Path:
    """A copy of the artifact, to damage."""
    return Path(shutil.copytree(converted.root, tmp_path / "artifact"))
