"""Single files of a repository of the Hub, which is neither a pipeline nor one model: a shelf of adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from exporter.checkpoints.hub import ask, described, fetch_files, get_file, repo_info
from exporter.checkpoints.patience import Patience
from exporter.errors import NetworkError
from exporter.progress import NullProgress


def listed(repo: str) -> tuple[tuple[str, ...], Callable[[Sequence[str]], Path]]:
    """The names of a repository's files, and what fetches some of them into huggingface_hub's cache.

    Offline both know what the cache holds.

    Raises:
        NetworkError: The Hub cannot be reached, and the cache holds nothing of it.
        CheckpointError: There is no such repository.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return _cached(repo)
    patience = Patience()
    try:
        info = ask(lambda: repo_info(repo, None), repo, None, patience)
    except NetworkError as error:
        try:
            return _cached(repo)
        except NetworkError:
            raise error from None
    files = {file.path: file for file in map(described, info.siblings or ())}

    def get(names: Sequence[str]) -> Path:
        root, _ = fetch_files(repo, info.sha, tuple(files[name] for name in names), NullProgress(), patience)
        # By the name asked for, so that the cache remembers which commit that is when nobody can be asked.
        ask(lambda: get_file(repo, None, names[0]), repo, None, patience)
        return root

    return tuple(files), get


def _cached(repo: str) -> tuple[tuple[str, ...], Callable[[Sequence[str]], Path]]:
    from huggingface_hub import snapshot_download

    try:
        root = Path(snapshot_download(repo, local_files_only=True))
    except OSError as error:
        raise NetworkError(
            f"{repo} is no folder here, not in the local Hub cache, and the Hub cannot be reached.",
            hint="Check the path or the network.",
        ) from error
    names = tuple(p.relative_to(root).as_posix() for p in sorted(root.rglob("*")) if p.is_file())
    return names, lambda wanted: root
