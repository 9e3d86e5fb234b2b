"""What checkpoints in one file have in common, whatever family lies in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from exporter.artifact import FileRecord, hash_file
from exporter.checkpoints.checkpoint import Checkpoint
from exporter.checkpoints.safetensors_file import StoredTensor
from exporter.errors import CheckpointError
from exporter.hashing import sha256_of

Tensors = Mapping[str, StoredTensor]


@dataclass(frozen=True, kw_only=True)
class OneFileCheckpoint(Checkpoint):
    """A subclass names the tensors of a component (`_mapped`), and says what diffusers makes of it
    (`_converted`).

    Attributes:
        path: The file.
        assumed: What could not be read from the file, in sentences.
        extras: How it was opened (config, tokenizer, base, pickle), to open it so again.
    """

    path: Path
    tensors: Tensors = field(repr=False, compare=False)
    assumed: tuple[str, ...] = ()
    extras: Mapping[str, Any] = field(default_factory=dict)
    _theirs: dict[str, dict[str, StoredTensor]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def notes(self) -> tuple[str, ...]:
        return self.assumed

    @property
    def opened_with(self) -> Mapping[str, Any]:
        return self.extras

    def _read_files(self, stop: Event) -> list[FileRecord]:
        """The small files, and the file itself."""
        small = [hash_file(p, self.root) for p in sorted(self.root.rglob("*")) if p.is_file()]
        digest = sha256_of(self.path, stop)
        whole = FileRecord(path=self.path.name, sha256=digest, bytes=self.path.stat().st_size)
        return [*small, whole]

    def weight_files(self, folder: str) -> list[Path]:
        return [self.path]

    def stored(self, folder: str) -> dict[str, StoredTensor]:
        if folder not in self._stores:
            self._stores[folder] = self._mapped(folder)
        return self._stores[folder]

    def reference_stored(self, folder: str) -> dict[str, StoredTensor]:
        """The tensors as diffusers' own single-file conversion names and cuts them.

        Raises:
            CheckpointError: It cannot convert this file.
        """
        if folder not in self._theirs:
            try:
                self._theirs[folder] = self._converted(folder)
            except Exception as error:  # whatever it stumbles over, there is then no reference
                raise CheckpointError(
                    f"diffusers' own conversion of {self.source} failed on {folder!r} "
                    f"({type(error).__name__}), so there is nothing to judge against."
                ) from error
        return self._theirs[folder]

    def _mapped(self, folder: str) -> dict[str, StoredTensor]:
        """Our naming."""
        raise NotImplementedError

    def _converted(self, folder: str) -> dict[str, StoredTensor]:
        """Theirs."""
        raise NotImplementedError
