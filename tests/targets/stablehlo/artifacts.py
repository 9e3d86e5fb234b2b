"""Small helpers: components, inputs as the format takes them, an opened part, changed files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from exporter.architectures import Component, components_of
from exporter.artifact import MANIFEST, Artifact, hash_files
from exporter.checkpoints import resolve
from exporter.targets import RunOptions, get_target
from exporter.targets.stablehlo.runner import StableHloRunner


def component(source: Path | str, name: str) -> Component:
    return next(c for c in components_of(resolve(str(source))) if c.name == name)


def arrays(part: Component, **size: int) -> dict[str, np.ndarray]:
    """Inputs as the artifact takes them: ids are int32."""
    values = {k: v.numpy() for k, v in part.example_inputs(replace(part.native, **size), seed=5).items()}
    return {k: v.astype(np.int32) if v.dtype == np.int64 else v for k, v in values.items()}


def runner(root: Path, name: str, **options: Any) -> StableHloRunner:
    record = Artifact.open(root).manifest.component(name)
    opened = get_target("stablehlo").open(root, record, RunOptions(**options))
    assert isinstance(opened, StableHloRunner)
    return opened


def rehash(root: Path, name: str) -> None:
    """Bring the manifest's hashes of a component up to date, so that they do not do the verifier's work."""
    manifest = json.loads((root / MANIFEST).read_text())
    (entry,) = (each for each in manifest["components"] if each["name"] == name)
    files = hash_files([root / each["path"] for each in entry["files"]], root)
    entry["files"] = [each.model_dump(mode="json") for each in files]
    (root / MANIFEST).write_text(json.dumps(manifest))


def edit_weight(path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change one float32 tensor of a safetensors file in place."""
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    begin, end = json.loads(data[8 : 8 + size])[name]["data_offsets"]
    place = slice(8 + size + begin, 8 + size + end)
    data[place] = change(np.frombuffer(bytes(data[place]), "<f4")).astype("<f4").tobytes()
    path.write_bytes(bytes(data))


def edit_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the header of a safetensors file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
