"""What the tests do to `.pt2` archives from outside: they are zip files."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from exporter.artifact import Artifact, hash_file
from exporter.targets import Runner, RunOptions, get_target
from exporter.targets.pt2.compile import compiler_names

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in compiler_names()), reason="needs a C++ compiler"
)
Edit = Callable[[bytes], bytes]


def edit_entry(archive: Path, ending: str, change: Edit) -> None:
    """Change the one entry whose name ends like that."""
    with zipfile.ZipFile(archive) as source:
        entries = [(entry.filename, source.read(entry)) for entry in source.infolist()]
    assert sum(name.endswith(ending) for name, _ in entries) == 1
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as target:
        for name, data in entries:
            target.writestr(name, change(data) if name.endswith(ending) else data)


def flip_bytes(archive: Path, ending: str) -> None:
    """Damage the one entry whose name ends like that, as a bad disk does: its checksum stays."""
    with zipfile.ZipFile(archive) as source:
        (entry,) = (entry for entry in source.infolist() if entry.filename.endswith(ending))
    with archive.open("r+b") as file:
        file.seek(entry.header_offset + 26)
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
        file.seek(name + extra + entry.file_size // 2, 1)
        old = file.read(4)
        file.seek(-4, 1)
        file.write(bytes(byte ^ 255 for byte in old))


def edit_json(archive: Path, ending: str, change: Callable[[Any], None]) -> None:
    """Change a JSON entry in place."""

    def edit(data: bytes) -> bytes:
        value = json.loads(data)
        change(value)
        return json.dumps(value).encode()

    edit_entry(archive, ending, edit)


def scale_weight(archive: Path, name: str, factor: float) -> None:
    """Multiply one float32 weight of a program."""
    with zipfile.ZipFile(archive) as source:
        (config,) = (n for n in source.namelist() if n.endswith("weights_config.json"))
        entry = json.loads(source.read(config))["config"][name]["path_name"]

    def scaled(data: bytes) -> bytes:
        values = torch.frombuffer(bytearray(data), dtype=torch.float32) * factor
        return values.numpy().tobytes()

    edit_entry(archive, f"/weights/{entry}", scaled)


def rehash(root: Path, name: str) -> None:
    """Bring the manifest up to date, as whoever plants a program would."""
    opened = Artifact.open(root)
    record = opened.manifest.component(name)
    record.files = [hash_file(root / file.path, root) for file in record.files]
    opened.save()


def runner(root: Path, name: str, **options: Any) -> Runner:
    """Open a component; trusted unless said otherwise."""
    opened = Artifact.open(root)
    target = get_target(opened.manifest.target)
    return target.open(root, opened.manifest.component(name), RunOptions(**{"trust": True, **options}))
