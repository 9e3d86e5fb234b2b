"""`exporter new-architecture` in a copy of this checkout: what it writes passes its own tests."""

from __future__ import annotations

import os
import re
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


KNOWN = "CogView4Pipeline"
"""A pipeline of the library with a transformer, and without a module here."""


@pytest.mark.parametrize("kind", [pytest.param("DreamPipeline", marks=pytest.mark.full), KNOWN])
def test_what_is_written_passes(copy: Path, kind: str) -> None:
    made = new_architecture("dream", kind, copy)
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
    with pytest.raises(UsageError, match=f"{kind} has a module already"):
        new_architecture("dream_2", kind, copy)
    assert (copy / REGISTER).read_text() == before and not (
        copy / "exporter/architectures/dream_2.py"
    ).exists()


def test_a_transformer_is_begun_from_what_the_library_says(copy: Path) -> None:
    made = new_architecture("dream", KNOWN, copy)
    assert any("diffusers/pipelines/cogview4/pipeline_cogview4.py" in line for line in made.following)
    text = (copy / made.written[0]).read_text()
    takes = ("`hidden_states`,", "`encoder_hidden_states`,", "`crop_coords`,", "CogView4Transformer2DModel")
    assert all(each in text for each in takes)
    assert 'ENCODED = (\n    "prompt_embeds",\n    "negative_prompt_embeds",\n)' in text
    names = re.findall(r'^    "(\w+Pipeline)"', (copy / REGISTER).read_text(), re.MULTILINE)
    assert KNOWN in names and names == sorted(names)


def test_the_register_is_in_order_at_its_end(copy: Path) -> None:
    new_architecture("zebra", "ZebraPipeline", copy)
    names = re.findall(r'^    "(\w+Pipeline)"', (copy / REGISTER).read_text(), re.MULTILINE)
    assert names[-1] == "ZebraPipeline" and names == sorted(names)


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
