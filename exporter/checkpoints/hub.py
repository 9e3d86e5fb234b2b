"""Downloads from the Hub: only what is needed, resumable, in parallel, and checked against its hashes.

The transfer and the cache are huggingface_hub's, so other tools share what was fetched; `HF_ENDPOINT`,
`HF_HOME`, `HF_HUB_OFFLINE` and the token are its own too. What is added here: the choice of files,
patience with a server that is busy or drops connections, and the check of every fetched byte (the
library compares lengths only).
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from exporter.artifact import MANIFEST
from exporter.checkpoints.patience import Patience, patient
from exporter.checkpoints.selection import components, select_files, select_part, weights_by_variant
from exporter.errors import CheckpointError, ExporterError, NetworkError
from exporter.hashing import sha256_of
from exporter.progress import NullProgress, Progress

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

T = TypeVar("T")
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
WORKERS = 8
POLL = 0.25
"""Seconds between two looks at how many bytes have arrived."""


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


def is_hub_id(text: str) -> bool:
    """Whether a source looks like `org/name` and not like a path."""
    return bool(HUB_ID.match(text)) and not text.startswith(("./", "../"))


def download(
    repo: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    progress: Progress | None = None,
    patience: Patience | None = None,
    skip: Collection[str] = (),
    part: bool = False,
) -> Snapshot:
    """Fetch what a pipeline (or an artifact) needs into huggingface_hub's cache.

    Args:
        repo: `org/name`.
        revision: Branch, tag or commit; the default branch when None.
        variant: Weight variant, such as `fp16`.
        patience: How often and how long to wait for a server that is busy.
        skip: Components of a pipeline whose weights are not wanted.
        part: One model alone will do (a ControlNet with its config.json), where it is no pipeline.

    Raises:
        NetworkError: The Hub cannot be reached, refuses, or sends other bytes than it promises. Offline,
            it names what the cache lacks.
        CheckpointError: No such revision or variant, or neither a pipeline nor an artifact.
    """
    from huggingface_hub import constants

    report = progress or NullProgress()
    if constants.HF_HUB_OFFLINE:
        return _from_cache(repo, revision, variant, skip, part)
    patience = patience or Patience()
    report.start(f"asking the Hub for {repo}")
    try:
        info = ask(lambda: repo_info(repo, revision), repo, revision, patience)
    except NetworkError as error:
        try:  # what was downloaded before serves without a network
            return _from_cache(repo, revision, variant, skip, part)
        except ExporterError:
            raise error from None
    files = {file.path: file for file in map(described, info.siblings or ())}
    kind, names = _needed(repo, info.sha, files, variant, patience, skip, part)
    wanted = tuple(files[name] for name in names)
    root, fetched = _fetch(repo, info.sha, wanted, report, patience)
    # By the name asked for, so that the cache remembers which commit that is when nobody can be asked.
    ask(lambda: get_file(repo, revision, wanted[0].path), repo, revision, patience)
    left_out = sum(file.size for path, file in files.items() if path not in names)
    return Snapshot(repo, root, info.sha, kind, wanted, fetched, left_out)


def repo_info(repo: str, revision: str | None) -> ModelInfo:
    from huggingface_hub import HfApi

    return HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=30)


def described(sibling: Any) -> HubFile:
    lfs = sibling.lfs
    sha256 = None if lfs is None else (lfs.get("sha256") if isinstance(lfs, dict) else lfs.sha256)
    return HubFile(sibling.rfilename, int(sibling.size or 0), sha256, sibling.blob_id)


def _needed(
    repo: str,
    sha: str | None,
    files: dict[str, HubFile],
    variant: str | None,
    patience: Patience,
    skip: Collection[str],
    part: bool,
) -> tuple[str, list[str]]:
    """What the repository is, and the files it takes."""

    def small(name: str) -> dict[str, Any]:
        path = ask(lambda: get_file(repo, sha, name), repo, sha, patience)
        check_content(path, files[name])
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{name} of {repo} is not JSON.") from error
        if not isinstance(value, dict):
            raise CheckpointError(f"{name} of {repo} is not a JSON object.")
        return value

    if MANIFEST in files:
        return "artifact", sorted(files)
    if part and "model_index.json" not in files and "config.json" in files:
        return "part", select_part(files, variant)
    if "model_index.json" not in files:
        raise CheckpointError(
            f"{repo} has no model_index.json, so it is not a diffusers pipeline.",
            hint="A single model file can be downloaded by hand and given as a path.",
        )
    return "checkpoint", select_files(files, small("model_index.json"), variant, skip)


def get_file(repo: str, sha: str | None, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo, name, revision=sha))


def _fetch(
    repo: str, sha: str | None, wanted: tuple[HubFile, ...], progress: Progress, patience: Patience
) -> tuple[Path, int]:
    """Every file into the cache; the snapshot's folder and the bytes that came."""
    from huggingface_hub import try_to_load_from_cache

    new = [
        file for file in wanted if not isinstance(try_to_load_from_cache(repo, file.path, revision=sha), str)
    ]
    total = sum(file.size for file in new)
    progress.start(f"downloading {repo}", total)
    stop = threading.Event()

    def one(file: HubFile) -> Path:
        for last in (False, True):
            path = ask(lambda: get_file(repo, sha, file.path), repo, sha, patience, stop)
            try:
                check_content(path, file)
                return path
            except NetworkError:
                if last or stop.is_set():
                    raise
        raise AssertionError("unreachable")

    done = 0
    with ThreadPoolExecutor(WORKERS) as pool:
        running = {pool.submit(one, file): file for file in sorted(new, key=lambda f: -f.size)}
        try:
            while running:
                finished, _ = wait(running, timeout=POLL, return_when=FIRST_COMPLETED)
                for future in finished:
                    file = running.pop(future)
                    future.result()
                    done += file.size
                progress.update(done + _arriving(repo), f"{len(new) - len(running)} of {len(new)} files")
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    progress.done()
    anchor = ask(lambda: get_file(repo, sha, wanted[0].path), repo, sha, patience)
    return anchor.parents[len(Path(wanted[0].path).parts) - 1], total


def _arriving(repo: str) -> int:
    """Bytes of files that are still on their way."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    size = 0
    for path in blobs.glob("*.incomplete"):
        try:
            size += path.stat().st_size
        except OSError:  # finished and renamed meanwhile
            continue
    return size


def check_content(path: Path, file: HubFile) -> None:
    """The file has the hash the Hub names; otherwise it is removed from the cache.

    Raises:
        NetworkError: It has not.
    """
    if file.sha256 is not None:
        right = sha256_of(path) == file.sha256
    elif file.git is not None:
        data = path.read_bytes()
        right = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == file.git
    else:
        right = path.stat().st_size == file.size
    if not right:
        blob = path.resolve()
        path.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)
        raise NetworkError(
            f"{file.path} did not arrive as the Hub describes it (its hash differs); it was discarded.",
            hint="Try again; if it stays so, a proxy between here and the Hub changes what it passes on.",
        )


def ask(
    call: Callable[[], T],
    repo: str,
    revision: str | None,
    patience: Patience,
    stop: threading.Event | None = None,
) -> T:
    """A request to the Hub, repeated while the server is busy, with its errors in our words.

    Raises:
        NetworkError, CheckpointError: What the Hub said.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return patient(call, patience, stop)
    except GatedRepoError as error:
        raise NetworkError(
            f"{repo} is gated and this machine has no access to it.",
            hint="Accept its terms on the Hub, then log in with `hf auth login`.",
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{repo} has no revision {revision!r}.") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{repo} is neither a folder here nor a repository on the Hub (or it is private).",
            hint="Check the name; for a private repository log in with `hf auth login`.",
        ) from error
    except LocalEntryNotFoundError as error:
        raise NetworkError(
            f"{repo} is no folder here, not in the local Hub cache, and the Hub cannot be reached.",
            hint="Check the path or the network, or use `builtin:shapes`, which needs neither.",
        ) from error
    except EntryNotFoundError as error:
        raise NetworkError(f"{repo} lists a file that the Hub does not give.") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "an error")
        raise NetworkError(
            f"The Hub answered {status} for {repo}, and did so each time it was asked again.",
            hint="Try again later; what has arrived is kept.",
        ) from error
    except OSError as error:
        raise NetworkError(
            f"{repo} is no folder here, and the Hub cannot be reached ({type(error).__name__}).",
            hint="Check the path or the network (what has arrived is kept), or use `builtin:shapes`, "
            "which needs neither.",
        ) from error


def _from_cache(
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


__all__ = ["HubFile", "Snapshot", "ask", "download", "is_hub_id"]
