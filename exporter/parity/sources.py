"""The reference an artifact is judged against, and whether it is the one it was made from."""

from __future__ import annotations

from pathlib import Path

from exporter.artifact import Artifact, Manifest
from exporter.checkpoints import Checkpoint, resolve
from exporter.errors import ArtifactError, CheckpointError


def check_bytes(artifact: Artifact) -> None:
    """Every file is as the manifest hashed it.

    Raises:
        ArtifactError: A file is missing or was changed.
    """
    changed = artifact.changed_files()
    if changed:
        names = ", ".join(changed[:3]) + (" …" if len(changed) > 3 else "")
        word = (
            "is missing" if not (artifact.root / changed[0]).is_file() else "differs from its recorded hash"
        )
        raise ArtifactError(
            f"{len(changed)} of the artifact's files changed after it was made: {names} "
            f"({Path(changed[0]).name} {word}).",
            hint="Convert again, or copy the artifact with all of its files.",
        )


def reference_for(artifact: Artifact, against: str | None, *, allow_pickle: bool = False) -> Checkpoint:
    """The checkpoint to judge against, with the very files the artifact was made from.

    Args:
        against: Where it lies; None takes the source in the manifest.
        allow_pickle: Open it even if its weights are pickles.

    Raises:
        ArtifactError: It cannot be found, or is another revision or has other weights.
    """
    source = artifact.manifest.source
    wanted = against or source.source
    revision = source.revision if against is None or against == source.source else None
    try:
        checkpoint = resolve(wanted, revision=revision, variant=source.variant, allow_pickle=allow_pickle)
    except CheckpointError as error:
        if against is not None:
            raise
        raise ArtifactError(
            f"The artifact was made from {source.source!r}, which is not here: {error.message}",
            hint="Name the checkpoint with --against SOURCE.",
        ) from error
    check_same(artifact.manifest, checkpoint)
    return checkpoint


def check_same(manifest: Manifest, checkpoint: Checkpoint) -> None:
    """The checkpoint holds the files, byte for byte, that the manifest recorded for its source.

    Raises:
        ArtifactError: Naming the first difference.
    """
    source = manifest.source
    if checkpoint.revision and source.revision and checkpoint.revision != source.revision:
        raise ArtifactError(
            f"The artifact was made from revision {source.revision[:12]} of {source.source}, "
            f"this is revision {checkpoint.revision[:12]}.",
            hint="Judge it against the revision it was made from, or convert again.",
        )
    if checkpoint.pipeline_class != source.pipeline_class:
        raise ArtifactError(
            f"The artifact was made from a {source.pipeline_class}, {checkpoint.source} is a "
            f"{checkpoint.pipeline_class}."
        )
    have = {file.path: file.sha256 for file in checkpoint.files} if source.files else {}
    for file in source.files:
        if have.get(file.path) != file.sha256:
            word = "differs" if file.path in have else "is missing"
            raise ArtifactError(
                f"{checkpoint.source} is not what the artifact was made from: {file.path} {word}.",
                hint="Judge it against the checkpoint it was made from, or convert again.",
            )
