"""Hands an artifact on: one commit on the Hub, with a card that says what it is and what was proven."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from exporter.artifact import MANIFEST, Artifact
from exporter.card import CARD, make_card
from exporter.checkpoints.hub import ask, is_hub_id
from exporter.checkpoints.patience import Patience
from exporter.errors import NetworkError, UsageError, VerificationFailed, VerificationInconclusive
from exporter.parity.schema import REPORT_FOLDER
from exporter.progress import NullProgress, Progress

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi

T = TypeVar("T")


@dataclass(frozen=True)
class Pushed:
    """What was published.

    Attributes:
        url: Of the commit.
        pull_request: Of the pull request, when one was asked for.
        files / bytes: Of the commit, the card included.
        verdict: As written into the card; None when it is unverified.
    """

    repo: str
    url: str
    commit: str
    pull_request: str | None
    files: int
    bytes: int
    verdict: str | None

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def push(
    artifact: str | Path,
    repo: str,
    *,
    create: bool = False,
    private: bool = False,
    revision: str | None = None,
    pull_request: bool = False,
    allow_unverified: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
    patience: Patience | None = None,
) -> Pushed:
    """Publish an artifact on the Hub.

    Large files go up one after the other and are skipped when the Hub has their content already, so an
    interrupted push is resumed by the same call; what becomes visible, becomes so in one commit.

    Args:
        artifact: The folder.
        repo: `org/name`.
        create: Make the repository if it is not there.
        private: Make it a private one.
        revision: Branch to commit to, made if it is not there; the default branch when None.
        pull_request: Open a pull request instead of committing.
        allow_unverified: Publish although nothing proves it; the card says so.
        trust: Hand on programs that were not made here.

    Raises:
        VerificationFailed / VerificationInconclusive: It is not a PASS on these very bytes.
        ArtifactError: Files are missing or changed.
        UntrustedArtifact: It is a program that was not made here, and `trust` is off.
        UsageError: `repo` is no `org/name`.
        NetworkError, CheckpointError: What the Hub said.
    """
    from exporter.parity.sources import check_bytes
    from exporter.targets import get_target
    from exporter.trust import UntrustedArtifact, doubt

    report = progress or NullProgress()
    patience = patience or Patience()
    if not is_hub_id(repo):
        raise UsageError(f"{repo!r} is no org/name.")
    opened = Artifact.open(artifact)
    report.start("hashing the artifact")
    check_bytes(opened)
    if get_target(opened.manifest.target, require_backend=False).executable and not trust:
        why = doubt(opened.root, opened.manifest.components)
        if why is not None:
            raise UntrustedArtifact(
                f"{why}; not published.",
                hint="If you trust whoever made it, say so: --trust (in Python trust=True).",
            )
    verdict = opened.verified()
    if verdict != "PASS" and not allow_unverified:
        raise refusal(opened, verdict)
    card = make_card(opened, repo)
    files = published_files(opened)
    report.done()

    from huggingface_hub import HfApi

    api = HfApi()

    def hub(call: Callable[[], T]) -> T:
        return ask_to_write(call, repo, revision, patience)

    report.start(f"asking the Hub for {repo}")
    if create:
        hub(lambda: api.create_repo(repo, private=private, exist_ok=True))
    stale = hub(lambda: stale_files(api, repo, revision, files))
    if revision is not None and not pull_request:
        hub(lambda: api.create_branch(repo, branch=revision, exist_ok=True))
    operations = _additions(opened.root, files, card)
    _upload(api, repo, operations, hub, report, revision=revision, pull_request=pull_request)
    report.start("commit")
    commit = hub(
        lambda: _commit(api, repo, operations, stale, opened, revision=revision, pull_request=pull_request)
    )
    report.done()
    size = sum((opened.root / name).stat().st_size for name in files) + len(card.encode())
    return Pushed(repo, str(commit.commit_url), str(commit.oid), commit.pr_url, len(files) + 1, size, verdict)


def refusal(artifact: Artifact, verdict: str | None) -> VerificationFailed | VerificationInconclusive:
    """Why an artifact that is no PASS is not published."""
    hint = "Verify it first: exporter verify …; or publish it as unverified with --allow-unverified."
    if verdict == "FAIL":
        record = artifact.manifest.verification
        why = f" ({record.summary})" if record and record.summary else ""
        return VerificationFailed(
            f"The verification of this artifact said FAIL{why}; not published.", hint=hint
        )
    word = "was INCONCLUSIVE" if verdict == "INCONCLUSIVE" else "is missing, or is about other bytes"
    return VerificationInconclusive(f"The verification of this artifact {word}; not published.", hint=hint)


def published_files(artifact: Artifact) -> list[str]:
    """Every file that goes up, without the card: those of the manifest, the manifest, the report."""
    names = [file.path for file in artifact.manifest.all_files()]
    folder = artifact.root / REPORT_FOLDER
    report = [p.relative_to(artifact.root).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]
    return sorted({*names, MANIFEST, *(name for name in report if not Path(name).name.startswith("."))})


def stale_files(api: HfApi, repo: str, revision: str | None, files: list[str]) -> list[str]:
    """Files that an artifact published there earlier had and this one has not. Nothing else is touched."""
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        there = {s.rfilename for s in api.model_info(repo, revision=revision).siblings or ()}
    except RevisionNotFoundError:  # a branch that is about to be made from the default one
        there = {s.rfilename for s in api.model_info(repo).siblings or ()}
        revision = None
    if MANIFEST not in there:
        return []
    path = api.hf_hub_download(repo, MANIFEST, revision=revision)
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        parts = [*data["components"], {"files": data["shared_files"]}]
        earlier = {file["path"] for part in parts for file in part["files"]}
    except (ValueError, KeyError, TypeError):
        return []
    return sorted((earlier & there) - set(files))


def _additions(root: Path, files: list[str], card: str) -> list[CommitOperationAdd]:
    from huggingface_hub import CommitOperationAdd

    added = [CommitOperationAdd(name, str(root / name)) for name in files]
    return [CommitOperationAdd(CARD, card.encode()), *added]


def _upload(
    api: HfApi,
    repo: str,
    operations: list[CommitOperationAdd],
    hub: Callable[[Callable[[], None]], None],
    progress: Progress,
    *,
    revision: str | None,
    pull_request: bool,
) -> None:
    """Contents of large files, smallest first, one at a time: each that arrived need not go again."""
    total = sum(op.upload_info.size for op in operations)
    progress.start(f"uploading to {repo}", total)
    done = 0
    for operation in sorted(operations, key=lambda op: op.upload_info.size):
        progress.update(done, operation.path_in_repo)

        def one(operation: CommitOperationAdd = operation) -> None:
            api.preupload_lfs_files(
                repo, [operation], revision=None if pull_request else revision,
                create_pr=pull_request, free_memory=False, num_threads=1,
            )  # fmt: skip

        hub(one)
        done += operation.upload_info.size
    progress.update(done)
    progress.done()


def _commit(
    api: HfApi,
    repo: str,
    operations: list[CommitOperationAdd],
    stale: list[str],
    artifact: Artifact,
    *,
    revision: str | None,
    pull_request: bool,
) -> CommitInfo:
    from huggingface_hub import CommitOperationDelete

    manifest = artifact.manifest
    return api.create_commit(
        repo,
        [*operations, *(CommitOperationDelete(name) for name in stale)],
        commit_message=f"{manifest.target} artifact of {manifest.source.pipeline_class}",
        commit_description=manifest.verification.summary if manifest.verification else None,
        revision=None if pull_request else revision,
        create_pr=pull_request,
    )


def ask_to_write(call: Callable[[], T], repo: str, revision: str | None, patience: Patience) -> T:
    """A request that changes something; a refusal says how to log in.

    Raises:
        NetworkError, CheckpointError: What the Hub said.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError

    hint = "Log in with a token that may write (`hf auth login`), or make the repository with --create."

    def guarded() -> T:
        try:
            return call()
        except LocalTokenNotFoundError as error:
            raise NetworkError(f"Publishing to {repo} needs a login.", hint=hint) from error
        except RepositoryNotFoundError as error:
            raise NetworkError(
                f"There is no repository {repo}, or this login may not see it.", hint=hint
            ) from error
        except HfHubHTTPError as error:
            if getattr(error.response, "status_code", None) in (401, 403):
                raise NetworkError(f"The Hub does not let this login write to {repo}.", hint=hint) from error
            raise
        except RuntimeError as error:  # the library's wrapping of a failed upload of one file
            if isinstance(error.__cause__, Exception):
                raise error.__cause__ from None
            raise

    return ask(guarded, repo, revision, patience)
