"""What a Hub keeps: repositories with branches of commits, and blobs in a folder."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

LFS_FROM = 10_000
"""Files of this many bytes or more are large files, as the Hub decides by size and ending."""
LFS_ENDINGS = (".safetensors", ".bin", ".onnx", ".onnx_data", ".ckpt")


@dataclass(frozen=True)
class Blob:
    """One stored content. `git` is the name git would give it, which is the ETag of small files."""

    sha256: str
    git: str
    size: int
    lfs: bool


@dataclass
class Commit:
    sha: str
    title: str
    files: dict[str, Blob]


@dataclass
class Repo:
    """A model repository: branch → commits, newest last."""

    name: str
    private: bool = False
    gated: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def commit(self, revision: str) -> Commit | None:
        """By branch, or by sha among all commits."""
        if revision in self.branches:
            return self.branches[revision][-1]
        return next((c for commits in self.branches.values() for c in commits if c.sha == revision), None)


class Store:
    """All repositories and blobs.

    Args:
        root: Folder for the blobs, by sha256.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, Blob] = {}
        self._count = itertools.count()

    def create(self, name: str, *, private: bool = False, gated: bool = False) -> Repo:
        repo = Repo(name, private, gated, {"main": [Commit(self._sha(name), "initial commit", {})]})
        self.repos[name] = repo
        return repo

    def upload(self, name: str, folder: Path, **settings: bool) -> Repo:
        """Make a repository from a folder, behind the protocol's back."""
        repo = self.create(name, **settings)
        files = {
            path.relative_to(folder).as_posix(): self.put(path.read_bytes(), path.name)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        self.add_commit(repo, "main", "upload", files)
        return repo

    def put(self, data: bytes, name: str = "") -> Blob:
        sha256 = hashlib.sha256(data).hexdigest()
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        blob = Blob(sha256, git, len(data), self.is_lfs(name, len(data)))
        (self.root / sha256).write_bytes(data)
        self.blobs[sha256] = blob
        return blob

    @staticmethod
    def is_lfs(name: str, size: int) -> bool:
        return size >= LFS_FROM or name.endswith(LFS_ENDINGS)

    def data(self, sha256: str) -> Path:
        return self.root / sha256

    def add_commit(
        self, repo: Repo, branch: str, title: str, added: Mapping[str, Blob], deleted: Iterable[str] = ()
    ) -> Commit:
        commits = repo.branches.setdefault(branch, list(repo.branches["main"]))
        files = dict(commits[-1].files)
        for path in deleted:
            files.pop(path, None)
        files.update(added)
        commit = Commit(self._sha(repo.name), title, files)
        commits.append(commit)
        return commit

    def _sha(self, text: str) -> str:
        return hashlib.sha1(f"{text} {next(self._count)}".encode()).hexdigest()
