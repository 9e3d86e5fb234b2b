"""OpenVINO artifacts that several clients open, exported once per test run."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from exporter.conversion import convert, make_plan


def make(source: str | Path, folder: Path, components: list[str] | None = None, **options: Any) -> Path:
    """Convert without verification (that is parity's own test); the artifact's folder."""
    plan = make_plan(str(source), "openvino", folder, options, components=components, verify=False)
    return convert(plan).artifact.root


@cache
def make_once(source: str, folder: Path) -> Path:
    """As `make`, kept for the rest of the run; `folder` must live as long."""
    return make(source, folder)
