"""Snapshots of the Hub in huggingface_hub's cache: what lies there, and what one lacks."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.artifact import MANIFEST
from exporter.checkpoints.selection import components, select_files, select_part, weights_by_variant
from exporter.errors import NetworkError


@dataclass(frozen=True)
class HubFile:
    """One file as the Hub describes it: bytes, and the hash of its content.

    Attributes:
        path: In the repository.
        size: Bytes.
        sha256: Of a large file; None for one kept in git.
        git: The name git gives a small file (sha1 over a header and the content).
    """

    path: str
    size: int
    sha256: str | None
    git: str | None


@dataclass(frozen=True)
class Snapshot:
    """A download that is complete.

    Attributes:
        root: Folder in the cache.
        revision: Commit sha.
        kind: What lies there: a diffusers `checkpoint`, an `artifact` of ours, or one model alone (a `part`).
        files: What it needs.
        fetched: Bytes that came over the network this time.
        left_out: Bytes of the repository that the pipeline does not need.
        offline: Whether only the cache was asked.
    """

    repo: str
    root: Path
    revision: str | None
    kind: str
    files: tuple[HubFile, ...]
    fetched: int
    left_out: int
    offline: bool = False

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "repo": self.repo, "root": str(self.root), "revision": self.revision, "kind": self.kind,
            "files": [{"path": f.path, "bytes": f.size} for f in self.files], "bytes": self.bytes,
            "fetched": self.fetched, "left_out": self.left_out, "offline": self.offline,
        }  # fmt: skip


def from_cache(
    repo: str, revision: str | None, variant: str | None, skip: Collection[str], part: bool = False
) -> Snapshot:
    """The snapshot that is in the cache, if it is complete.

    Raises:
        NetworkError: It is not there, or lacks something; all of it is named.
    """
    from huggingface_hub import snapshot_download

    try:
        root = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except OSError as error:
        raise NetworkError(
            f"{repo} is no folder here, not in the local Hub cache, and the Hub cannot be reached.",
            hint="Check the path or the network, or use `builtin:shapes`, which needs neither.",
        ) from error
    names = [p.relative_to(root).as_posix() for p in sorted(root.rglob("*")) if p.is_file()]
    part = part and "config.json" in names and not {"model_index.json", MANIFEST} & set(names)
    missing = _gaps(root, names, repo) if part else _missing(root, names, skip)
    if missing:
        raise NetworkError(
            f"The local cache holds {repo} only in part, and the Hub cannot be reached; it lacks: "
            f"{', '.join(missing)}.",
            hint=f"With a network: exporter download {repo}.",
        )
    if MANIFEST in names:
        kind, wanted = "artifact", names
    elif part:
        kind, wanted = "part", select_part(names, variant)
    else:
        index = json.loads((root / "model_index.json").read_text(encoding="utf-8"))
        kind, wanted = "checkpoint", select_files(names, index, variant, skip)
    files = tuple(HubFile(name, (root / name).stat().st_size, None, None) for name in wanted)
    return Snapshot(repo, root, root.name, kind, files, 0, 0, offline=True)


def _missing(root: Path, names: list[str], skip: Collection[str]) -> list[str]:
    """What a cached snapshot lacks, in words."""
    if MANIFEST in names:
        from exporter.artifact import Artifact

        return [f.path for f in Artifact.open(root).manifest.all_files() if f.path not in names]
    if "model_index.json" not in names:
        return ["model_index.json"]
    try:
        index = json.loads((root / "model_index.json").read_text(encoding="utf-8"))
    except ValueError:
        return ["a readable model_index.json"]
    lacking = []
    for component in components(index, names):
        inside = [n.removeprefix(f"{component}/") for n in names if n.startswith(f"{component}/")]
        if not inside:
            lacking.append(component)
            continue
        if component in skip or "config.json" not in inside:
            continue  # a scheduler or tokenizer: no weights belong to it
        missing = _gaps(root / component, inside, component)
        lacking += [name if " " in name else f"{component}/{name}" for name in missing]
    return lacking


def _gaps(folder: Path, inside: list[str], what: str) -> list[str]:
    """What the files of one model lack: shards, or `the weights of …`; nothing if one variant is whole."""
    gaps = [_gap(folder, files, inside) for files in weights_by_variant(inside).values()]
    if not gaps:
        return [f"the weights of {what}"]
    return min(gaps, key=len) if all(gaps) else []


def _gap(folder: Path, files: list[str], inside: list[str]) -> list[str]:
    """Shards that a variant's index names and that are not there."""
    named = {shard for name in files if name.endswith(".json") for shard in _shards(folder / name)}
    return sorted(named - set(inside))


def _shards(path: Path) -> set[str]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return {str(name) for name in value["weight_map"].values()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return set()
