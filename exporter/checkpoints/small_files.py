"""Small files (configs, tokenizers) that a source does not bring as files: written once into the cache.

The folder's name is the hash of its contents, so the same model always finds the same folder and an
interrupted conversion of it resumes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter import cache


def sources_folder() -> Path:
    """`sources` in the user's cache."""
    return cache.root() / "sources"


def as_json(value: Any) -> bytes:
    """Readable JSON, the same bytes for the same value."""
    return (json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()


def folder_of(files: Mapping[str, bytes]) -> Path:
    """A folder that holds exactly these files.

    Args:
        files: POSIX path relative to the folder → contents. The paths are the caller's own words.

    Returns:
        Its path, in the user's cache; in a temporary folder when the cache cannot be written.
    """
    digest = hashlib.sha256()
    for name, data in sorted(files.items()):
        digest.update(f"{name} {len(data)} ".encode() + hashlib.sha256(data).digest())
    folder = sources_folder() / digest.hexdigest()[:32]
    if _holds(folder, files):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
        _write(temporary, files)
        if folder.exists():  # damaged: somebody edited the cache
            shutil.rmtree(folder)
        temporary.rename(folder)
    except OSError:
        if _holds(folder, files):  # another process was quicker
            return folder
        folder = Path(tempfile.mkdtemp(prefix="exporter-"))
        _write(folder, files)
    return folder


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _holds(folder: Path, files: Mapping[str, bytes]) -> bool:
    if not folder.is_dir():
        return False
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return found == set(files) and all((folder / n).read_bytes() == d for n, d in files.items())


def read_folder(root: Path, folders: list[str]) -> dict[str, bytes]:
    """`model_index.json` and the small files of the named folders, as `folder_of` takes them."""
    files = {}
    if (root / "model_index.json").is_file():
        files["model_index.json"] = (root / "model_index.json").read_bytes()
    for folder in folders:
        if (root / folder).is_dir():
            for path in sorted((root / folder).iterdir()):
                small = path.is_file() and path.suffix in {".json", ".txt", ".model", ".jinja"}
                if small and not path.name.endswith(".index.json"):
                    files[f"{folder}/{path.name}"] = path.read_bytes()
    return files
