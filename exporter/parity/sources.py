"""The reference an artifact is judged against, and whether it is the one it was made from."""

from __future__ import annotations

from pathlib import Path

from exporter.artifact import Artifact, Manifest
from exporter.checkpoints import Checkpoint, resolve
from exporter.checkpoints.overlays.base import class_below
from exporter.errors import ArtifactError, CheckpointError
from exporter.techniques import bake, carried


def check_bytes(artifact: Artifact) -> None:
    """Every file is as the manifest hashed it, and none was added that decides what is loaded.

    Raises:
        ArtifactError: A file is missing, or was changed or added.
    """
    changed = artifact.changed_files()
    if changed:
        names = ", ".join(changed[:3]) + (" …" if len(changed) > 3 else "")
        word = "differs from its recorded hash"
        if not (artifact.root / changed[0]).is_file():
            word = "is missing"
        elif changed[0] in artifact.added_files():
            word = "was added"
        raise ArtifactError(
            f"{len(changed)} of the artifact's files changed after it was made: {names} "
            f"({Path(changed[0]).name} {word}).",
            hint="Convert again, or copy the artifact with all of its files.",
        )


def reference_for(artifact: Artifact, against: str | None, *, allow_pickle: bool = False) -> Checkpoint:
    """The checkpoint to judge against, with the very files the artifact was made from.

    Args:
        against: Where it lies; None takes the source in the manifest.
        allow_pickle: Open a source or an overlay that is a pickle.

    Raises:
        ArtifactError: It cannot be found, is another revision or has other weights; or this version does
            not know a technique that the artifact carries.
        BackendMissing: A package is missing that a technique is judged with.
    """
    source = artifact.manifest.source
    wanted = against or source.source
    revision = source.revision if against is None or against == source.source else None
    single = Path(wanted).expanduser().is_file()
    try:
        checkpoint = resolve(
            wanted,
            revision=revision,
            variant=source.variant,
            allow_pickle=allow_pickle,
            config=source.config if single else None,
            tokenizer=source.tokenizer if single else None,
            base=source.base if single else None,
        )
    except CheckpointError as error:
        if against is not None:
            raise
        raise ArtifactError(
            f"The artifact was made from {source.source!r}, which is not here: {error.message}",
            hint="Name the checkpoint with --against SOURCE.",
        ) from error
    check_same(artifact.manifest, checkpoint)
    if source.overlays:
        from exporter.checkpoints.overlays import lay_again

        checkpoint = lay_again(checkpoint, source.overlays, allow_pickle=allow_pickle)
    techniques = [{name: options} for name, options in carried(artifact.manifest)]
    return bake(techniques, artifact.manifest.target, checkpoint)


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
    made_from = class_below(source.overlays, source.pipeline_class)
    if checkpoint.pipeline_class != made_from:
        raise ArtifactError(
            f"The artifact was made from a {made_from}, {checkpoint.source} is a {checkpoint.pipeline_class}."
        )
    have = {file.path: file.sha256 for file in checkpoint.files} if source.files else {}
    hashes = set(have.values())
    for file in source.files:
        renamed = "/" not in file.path and file.sha256 in hashes  # one file may be called what it likes
        if have.get(file.path) != file.sha256 and not renamed:
            word = "differs" if file.path in have else "is missing"
            raise ArtifactError(
                f"{checkpoint.source} is not what the artifact was made from: {file.path} {word}.",
                hint="Judge it against the checkpoint it was made from, or convert again.",
            )
