"""Where a file and what belongs to it lie: in a folder here, or in a repository of the Hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter.checkpoints.selection import ANY_INDEX, choose, weights_by_variant
from exporter.errors import CheckpointError

ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
DEPTH = 4
"""Folders below the one that was named in which is looked."""


@dataclass(frozen=True)
class Place:
    """A folder with files by name, which may have to be fetched.

    Attributes:
        names: Every file, as POSIX paths.
        get: Makes sure of these files; gives the folder below which they lie.
    """

    names: tuple[str, ...]
    get: Callable[[Sequence[str]], Path]

    def get_model(self, folder: str, allow_pickle: bool) -> Path:
        """Make sure of one model's config and weights: safetensors, or allowed pickles."""
        inside = [n.removeprefix(f"{folder}/") for n in self.names if n.startswith(f"{folder}/")]
        inside = [n for n in inside if "/" not in n]
        small = [n for n in inside if n.endswith(".json") and not ANY_INDEX.search(n)]
        found = weights_by_variant(inside)
        weights = choose(found, None, folder) if found else []
        if not weights and allow_pickle:
            weights = [n for n in inside if n.endswith(".bin") or n.endswith(".bin.index.json")]
        return self.get([f"{folder}/{name}" for name in (*small, *weights)])


def open_place(text: str) -> tuple[Place, str]:
    """What `SOURCE[:PATH]` names: the place, and the file's name in it.

    Args:
        text: A file; a folder or Hub id, with `:PATH` of the file unless there is only one such file.

    Raises:
        CheckpointError: Nothing is there, or several files are and none is named.
        NetworkError: The Hub cannot be reached.
    """
    from exporter.checkpoints.hub import is_hub_id

    whole = Path(text).expanduser()
    if whole.is_file():
        return _folder(whole.parent, depth=2), whole.name
    source, name = (text, "") if whole.is_dir() or ":" not in text else text.rsplit(":", 1)
    path = Path(source).expanduser()
    if path.is_dir():
        return _named(text, _folder(path), name)
    if path.is_file() or not is_hub_id(source):
        raise CheckpointError(
            f"The IP-Adapter {text} is not there: {source} is no folder, and no `org/name` of the Hub.",
            hint="Name a file, or FOLDER:FILE, or org/name:FILE.",
        )
    from exporter.checkpoints.picked import listed

    return _named(text, Place(*listed(source)), name)


def _named(text: str, place: Place, name: str) -> tuple[Place, str]:
    if name:
        if name not in place.names:
            raise CheckpointError(f"There is no file {name} in {text.rsplit(':', 1)[0]}.", hint=_offer(place))
        return place, name
    adapters = _adapters(place, (".safetensors",)) or _adapters(place, ENDINGS)
    if len(adapters) != 1:
        told = f"{len(adapters)} files that could be" if adapters else "no file that could be"
        raise CheckpointError(f"{text} holds {told} an IP-Adapter.", hint=_offer(place))
    return place, adapters[0]


def _adapters(place: Place, endings: tuple[str, ...]) -> list[str]:
    return [n for n in place.names if n.endswith(endings) and "/image_encoder/" not in f"/{n}"]


def _offer(place: Place) -> str:
    found = _adapters(place, (".safetensors",)) or _adapters(place, ENDINGS)
    if not found:
        return "Name a file such as ip-adapter_sd15.safetensors."
    return f"Name one with SOURCE:FILE, of: {', '.join(sorted(found)[:12])}."


def _folder(root: Path, depth: int = DEPTH) -> Place:
    """A folder here; beside a file that was named nothing deeper than an encoder's own files is looked at."""
    names = []
    level = [root]
    for _ in range(depth):
        entries = [entry for folder in level for entry in _entries(folder)]
        names += [entry.relative_to(root).as_posix() for entry in entries if entry.is_file()]
        level = [entry for entry in entries if entry.is_dir() and not entry.is_symlink()]
    return Place(tuple(names), lambda wanted: root.resolve())


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # not ours to read: nothing of it can be meant
        return []
