"""`exporter new-architecture` in a copy of this checkout: what it writes passes its own tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.errors import DestinationError, UsageError
from exporter.scaffold import REGISTER, new_architecture

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What the command looks at of a checkout."""
    for folder in ("exporter", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "shapes")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_what_is_written_passes(copy: Path) -> None:
    made = new_architecture("dream", "DreamPipeline", copy)
    assert made.written == ("exporter/architectures/dream.py", "tests/architectures/test_dream.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", made.written[1]], cwd=copy, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(copy)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout
    style = subprocess.run(
        [sys.executable, "-m", "ruff", "check", *made.written],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert style.returncode == 0, style.stdout
    before = (copy / REGISTER).read_text()
    with pytest.raises(DestinationError, match=r"exporter/architectures/dream.py exists"):
        new_architecture("dream", "OtherPipeline", copy)
    with pytest.raises(UsageError, match="DreamPipeline has a module already"):
        new_architecture("dream_2", "DreamPipeline", copy)
    assert (copy / REGISTER).read_text() == before and not (
        copy / "exporter/architectures/dream_2.py"
    ).exists()


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("My Family", "MyPipeline", "no name of a module"),
        ("class", "MyPipeline", "no name of a module"),
        ("../up", "MyPipeline", "no name of a module"),
        ("mine", "os.system", "no name of a class"),
        ("mine", "MyPipeline", "in no source checkout"),
    ],
)
def test_what_is_refused(name: str, kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        new_architecture(name, kind, tmp_path)
    assert list(tmp_path.iterdir()) == []
