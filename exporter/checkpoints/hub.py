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
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from exporter.artifact import MANIFEST
from exporter.checkpoints.patience import Patience, patient
from exporter.checkpoints.selection import select_files, select_part
from exporter.checkpoints.snapshots import HubFile as HubFile
from exporter.checkpoints.snapshots import Snapshot as Snapshot
from exporter.checkpoints.snapshots import from_cache
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
        return from_cache(repo, revision, variant, skip, part)
    patience = patience or Patience()
    report.start(f"asking the Hub for {repo}")
    try:
        info = ask(lambda: repo_info(repo, revision), repo, revision, patience)
    except NetworkError as error:
        try:  # what was downloaded before serves without a network
            return from_cache(repo, revision, variant, skip, part)
        except ExporterError:
            raise error from None
    files = {file.path: file for file in map(described, info.siblings or ())}
    kind, names = _needed(repo, info.sha, files, variant, patience, skip, part)
    wanted = tuple(files[name] for name in names)
    root, fetched = fetch_files(repo, info.sha, wanted, report, patience)
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


def fetch_files(
    repo: str, sha: str | None, wanted: tuple[HubFile, ...], progress: Progress, patience: Patience
) -> tuple[Path, int]:
    """Bring every file of one commit that the cache lacks into it, and check what came.

    Returns:
        The snapshot's folder, and the bytes that were downloaded.

    Raises:
        NetworkError: The Hub cannot be reached, or what it sent is damaged twice.
    """
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


__all__ = ["HubFile", "Snapshot", "ask", "download", "is_hub_id"]
