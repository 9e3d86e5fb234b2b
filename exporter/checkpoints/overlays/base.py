"""The shape of every overlay: a checkpoint that hands on what it does not change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from exporter.artifact import FileRecord, OverlayRecord
from exporter.checkpoints.checkpoint import Checkpoint
from exporter.checkpoints.safetensors_file import StoredTensor
from exporter.errors import CheckpointError
from exporter.hashing import sha256_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import nn

OVER = "pipeline_class"
"""In the details of a record that changes the pipeline's class: that of the checkpoint below."""


@dataclass(frozen=True, kw_only=True)
class Overlaid(Checkpoint):
    """A checkpoint with something laid over it.

    Attributes:
        base: What lies below.
        records: What this layer adds to the manifest.
        remarks: What a reader should know about this layer.
    """

    base: Checkpoint
    records: tuple[OverlayRecord, ...]
    remarks: tuple[str, ...] = ()

    @classmethod
    def over(cls, base: Checkpoint, records: tuple[OverlayRecord, ...], **more: Any) -> Self:
        """A layer over `base`; `root` may be given when small files change."""
        settings = {"root": base.root, "index": base.index, **more}
        return cls(
            source=base.source, revision=base.revision, variant=base.variant, base=base, records=records,
            **settings,
        )  # fmt: skip

    @property
    def overlays(self) -> tuple[OverlayRecord, ...]:
        return (*self.base.overlays, *self.records)

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.base.notes, *self.remarks)

    @property
    def opened_with(self) -> Mapping[str, Any]:
        return self.base.opened_with

    @property
    def lacking(self) -> Mapping[str, str]:
        return self.base.lacking

    @property
    def advice(self) -> str:
        return self.base.advice

    def expected(self, folder: str) -> Mapping[str, Any]:
        return self.base.expected(folder)

    @property
    def files(self) -> list[FileRecord]:  # type: ignore[override]
        """Those of the source; what lies over it stands in `overlays`."""
        return self.base.files

    def stop_hashing(self) -> None:
        self.base.stop_hashing()

    def stored(self, folder: str) -> dict[str, StoredTensor]:
        return self.base.stored(folder)

    def reference_stored(self, folder: str) -> dict[str, StoredTensor]:
        return self.base.reference_stored(folder)

    def attach(self, folder: str, module: nn.Module, dtype: torch.dtype) -> None:
        self.base.attach(folder, module, dtype)

    def reference_digest(self, folder: str) -> str:
        return self.base.reference_digest(folder)

    def rounded(self, folder: str) -> frozenset[str]:
        return self.base.rounded(folder)

    def weight_files(self, folder: str) -> list[Path]:
        return self.base.weight_files(folder)

    def validate(self) -> None:
        self.base.validate()


def class_below(records: Sequence[OverlayRecord], laid: str) -> str:
    """The pipeline class of a checkpoint under its overlays, whose class with them is `laid`."""
    return next((str(record.details[OVER]) for record in records if OVER in record.details), laid)


def record_of(path: Path) -> FileRecord:
    """Name, hash and size of one file, named without its folder.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        return FileRecord(path=path.name, sha256=sha256_of(path), bytes=path.stat().st_size)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error


def existing(text: str, what: str) -> Path:
    """A file the user named.

    Raises:
        CheckpointError: It is not there.
    """
    path = Path(text).expanduser()
    if not path.is_file():
        raise CheckpointError(
            f"The {what} {text} is {'a folder, not a file' if path.is_dir() else 'not there'}."
        )
    return path
