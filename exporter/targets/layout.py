"""The diffusers folder around exported components, shared by targets whose clients are built on it.

Optimum's pipelines and OpenVINO GenAI open a folder with `model_index.json`, one folder with a
`config.json` per exported component (the VAE as `vae_decoder/` and `vae_encoder/`), and the
scheduler and tokenizers as the checkpoint has them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.architectures.safety_checker import NAME as SAFETY_CHECKER
from exporter.artifact import write_text_atomic

if TYPE_CHECKING:
    from exporter.architectures.base import Component
    from exporter.checkpoints import Checkpoint

SMALL_SUFFIXES = {".json", ".txt", ".model", ".jinja"}
LOCAL_KEYS = ("_name_or_path", "name_or_path")
"""Keys that libraries fill with the path a model was loaded from: of no use to anyone else."""


def write_diffusers_files(
    checkpoint: Checkpoint, components: Sequence[Component], staging: Path
) -> list[Path]:
    """Write everything of the layout that is not a component's own model file.

    Args:
        checkpoint: The source.
        components: The exported components.
        staging: The root of the artifact.

    The index names no safety checker: clients that are built on this layout look for PyTorch's weights there.

    Returns:
        The files written: `model_index.json`, `<component>/config.json`, and the files of every
        pipeline part without weights (scheduler, tokenizers, feature extractor).
    """
    indexed = [component for component in components if component.name != SAFETY_CHECKER]
    files = [write_json(staging / "model_index.json", model_index(checkpoint, indexed))]
    for component in components:
        if component.beside is None:
            config = portable({**component.config, **component.published()})
            files.append(write_json(staging / component.name / "config.json", config))
    for folder in weightless_folders(checkpoint):
        for path in sorted((checkpoint.root / folder).iterdir()):
            if path.suffix in SMALL_SUFFIXES and path.is_file():
                files.append(copy_small(path, staging / folder / path.name))
    return files


def model_index(
    checkpoint: Checkpoint, components: Sequence[Component], also: Iterable[str] = ()
) -> dict[str, Any]:
    """The checkpoint's `model_index.json` with null for every part the artifact does not hold.

    A pipeline made of the artifact must not ask for a safety checker that the index does not name.

    Args:
        also: Folders that are held besides those of the components.
    """
    held = {component.folder for component in components} | set(weightless_folders(checkpoint)) | set(also)
    index: dict[str, Any] = {}
    for key, value in checkpoint.index.items():
        if key in LOCAL_KEYS:
            continue
        is_part = isinstance(value, list | tuple) and len(value) == 2
        index[key] = [None, None] if is_part and key not in held else value
    beside = [name for name in checkpoint.component_classes if name.startswith("controlnet_")]
    if not held.issuperset(beside):  # some of several ControlNets are none
        index["controlnet"] = [None, None]
    if "requires_safety_checker" in index and index.get("safety_checker", [None, None])[1] is None:
        index["requires_safety_checker"] = False
    return index


def weightless_folders(checkpoint: Checkpoint) -> list[str]:
    """Parts of the pipeline that are settings only: scheduler, tokenizers, feature extractor."""
    return [
        name
        for name in checkpoint.component_classes
        if (checkpoint.root / name).is_dir() and not (checkpoint.root / name / "config.json").is_file()
    ]


def tokenizer_folders(checkpoint: Checkpoint) -> list[str]:
    """The weightless folders that hold a tokenizer."""
    return [name for name in weightless_folders(checkpoint) if name.startswith("tokenizer")]


def copy_small(source: Path, destination: Path) -> Path:
    """Copy a small file; JSON without the keys that name a path of the machine it was made on."""
    if source.suffix == ".json":
        data = json.loads(source.read_text(encoding="utf-8"))
        if isinstance(data, dict) and any(key in data for key in LOCAL_KEYS):
            return write_json(destination, portable(data))
    destination.parent.mkdir(parents=True, exist_ok=True)
    destination.write_bytes(source.read_bytes())  # the Hub's cache holds links, an artifact holds files
    return destination


def portable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the paths of the machine it was made on."""
    return {key: value for key, value in config.items() if key not in LOCAL_KEYS}


def write_json(path: Path, value: Mapping[str, Any]) -> Path:
    """Write readable JSON, its folder included. Whoever is hashing an earlier one reads that to its end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    return path
