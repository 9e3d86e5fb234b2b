"""What a checkpoint folder may not do: bring code, name things outside itself, or link there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from exporter.errors import CheckpointError

LIBRARIES = {"diffusers", "transformers"}
NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
CLASS = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
MAX_JSON = 64_000_000
"""Bytes of the largest configuration, index or manifest that is read: a thousand times the usual."""
NO_CODE = "exporter never runs code that a checkpoint brings, so it is refused"


def check_index(source: str, index: Mapping[str, Any]) -> None:
    """`model_index.json` names a pipeline and parts of known libraries, in folders of its own.

    Raises:
        CheckpointError: It names code of its own, or a folder outside.
    """
    kind = index.get("_class_name")
    if isinstance(kind, list):
        raise CheckpointError(
            f"model_index.json of {source} asks for a pipeline of its own ({kind}); {NO_CODE}.",
            hint="Convert a checkpoint whose pipeline is part of diffusers.",
        )
    if not isinstance(kind, str) or not CLASS.match(kind):
        raise CheckpointError(f"model_index.json of {source} names no pipeline (`_class_name`).")
    for name, value in index.items():
        if Path(name).name != name or name in {"", ".", ".."} or not NAME.match(name):
            raise CheckpointError(
                f"model_index.json of {source} names a folder outside itself ({name!r}); refused."
            )
        if name == "auto_map":
            raise CheckpointError(f"model_index.json of {source} maps classes to files; {NO_CODE}.")
        if not isinstance(value, list) or name.startswith("_") or len(value) != 2 or value[1] is None:
            continue
        library, part = value
        if not isinstance(library, str) or not isinstance(part, str) or not CLASS.match(part):
            if all(isinstance(v, int | float | bool) for v in value):
                continue  # a setting that is a pair of numbers
            raise CheckpointError(f"model_index.json of {source} has a malformed entry {name!r}.")
        if library not in LIBRARIES and not _of_diffusers(library):
            raise CheckpointError(
                f"model_index.json of {source} takes {part} from a module of its own "
                f"({library!r}); {NO_CODE}.",
                hint="Convert a checkpoint whose parts come from diffusers and transformers.",
            )


def _of_diffusers(library: str) -> bool:
    """Whether diffusers has pipelines of that name (`stable_diffusion` holds its safety checker)."""
    spec = find_spec("diffusers")
    if spec is None or not spec.submodule_search_locations or not CLASS.match(library):
        return False
    return (Path(spec.submodule_search_locations[0]) / "pipelines" / library).is_dir()


def check_folder(source: str, root: Path, folders: list[str]) -> None:
    """No file of these folders is a link out of the checkpoint, and no config asks for code.

    The Hub's cache keeps a snapshot as links into the `blobs` beside it, so the repository's folder
    counts as inside there.

    Raises:
        CheckpointError: One does.
    """
    inside = (repository_of(root) or root).resolve()
    found = [root / "model_index.json"]
    for name in folders:
        folder = root / name
        if folder.is_symlink() and not folder.resolve().is_relative_to(inside):
            raise _link(source, folder, root)
        if folder.is_dir():
            found += sorted(folder.iterdir())
    for path in found:
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise _link(source, path, root)
        if path.name in {"config.json", "tokenizer_config.json", "scheduler_config.json"}:
            check_config(source, path)


def check_config(source: str, path: Path) -> None:
    """A component's configuration asks for no code (`auto_map`).

    Raises:
        CheckpointError: It does. A file that cannot be read is left to whoever needs it.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= MAX_JSON else {}
    except (OSError, ValueError, RecursionError):
        return
    if isinstance(config, dict) and config.get("auto_map"):
        raise CheckpointError(
            f"{path.parent.name}/{path.name} of {source} asks for code of its own (auto_map); {NO_CODE}."
        )


def repository_of(root: Path) -> Path | None:
    """The repository's folder in the Hub's cache that a snapshot belongs to, or None elsewhere."""
    repository = root.parent.parent
    cached = root.parent.name == "snapshots" and repository.name.startswith("models--")
    return repository if cached and (repository / "blobs").is_dir() else None


def _link(source: str, path: Path, root: Path) -> CheckpointError:
    return CheckpointError(
        f"{path.relative_to(root).as_posix()} of {source} is a link out of the checkpoint's folder; refused.",
        hint="Put the file itself there.",
    )
