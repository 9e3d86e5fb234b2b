"""Small matrices on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

SIZES = ("1x64x64", "1x64x128", "1x128x64")


def write(folder: Path, tiny: Path, sizes: tuple[str, ...] = SIZES, *, more: str = "") -> Path:
    """A matrix whose cells export one small component at different sizes; one a size."""
    recipe = "name: r\nmodel: builtin:shapes\ntarget: onnx\nverify: {enabled: false}\n"
    recipe += f"components: [vae_encoder]\nmatrix:\n  static: {json.dumps(list(sizes))}\n"
    (folder / "r.yaml").write_text(recipe)
    path = folder / "m.yaml"
    path.write_text(f"name: m\nmodels:\n  - model: {tiny}\n    name: t\nrecipes: [r.yaml]\n{more}")
    return path


def attempts(out: Path, cell: str) -> list[str]:
    """What the workers noted of a cell, in order."""
    lines = (out / ".batch" / f"{cell}.attempts").read_text().splitlines()
    return [json.loads(line)["what"] for line in lines]
