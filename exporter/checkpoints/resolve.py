"""From what the user typed to a `Checkpoint` on this disk."""

from __future__ import annotations

import os
from pathlib import Path

from exporter.checkpoints.checkpoint import Checkpoint, read_json
from exporter.checkpoints.hub import download, is_hub_id
from exporter.errors import CheckpointError
from exporter.progress import Progress


def resolve(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    variant: str | None = None,
    progress: Progress | None = None,
) -> Checkpoint:
    """Find a checkpoint.

    Args:
        source: `builtin:NAME`, a folder in diffusers layout, or a Hub id `org/name`.
        revision: Branch, tag or commit of a Hub repository.
        variant: Weight variant, such as `fp16`.
        progress: Told of a download.

    Raises:
        CheckpointError: It does not exist or is not a diffusers pipeline.
        NetworkError: The Hub could not be reached.
    """
    text = os.fspath(source)
    if text.startswith("builtin:"):
        return _builtin(text)
    path = Path(text).expanduser()
    if path.is_dir():
        return _folder(text, path, variant)
    if path.is_file():
        raise CheckpointError(
            f"{text} is a single file; this version reads diffusers folders.",
            hint="Convert it with diffusers' `from_single_file(...).save_pretrained(...)` first.",
        )
    if is_hub_id(text):
        return _hub(text, revision, variant, progress)
    raise CheckpointError(
        f"Source {text!r} does not exist: it is no folder, no `org/name` of the Hub, and no `builtin:` name.",
        hint="Try `exporter convert builtin:shapes --to onnx`.",
    )


def _builtin(text: str) -> Checkpoint:
    from exporter import builtin

    name = text.removeprefix("builtin:")
    if name not in builtin.NAMES:
        raise CheckpointError(
            f"There is no embedded checkpoint {name!r}; there is: {', '.join(builtin.NAMES)}."
        )
    return _open(text, builtin.path(), None, None)


def _folder(text: str, path: Path, variant: str | None) -> Checkpoint:
    return _open(text, path.resolve(), None, variant)


def _open(source: str, root: Path, revision: str | None, variant: str | None) -> Checkpoint:
    index_path = root / "model_index.json"
    if not index_path.is_file():
        raise CheckpointError(
            f"{source} has no model_index.json, so it is not a diffusers pipeline folder.",
            hint="Point at the folder that holds model_index.json, unet/, vae/, text_encoder/ …",
        )
    index = read_json(index_path)
    if not isinstance(index.get("_class_name"), str):
        raise CheckpointError(f"model_index.json of {source} names no pipeline (`_class_name`).")
    for name in index:
        if Path(name).name != name or name in {"", ".", ".."}:
            raise CheckpointError(
                f"model_index.json of {source} names a folder outside itself ({name!r}); refused."
            )
    return Checkpoint(source=source, root=root, index=index, revision=revision, variant=variant)


def _hub(repo: str, revision: str | None, variant: str | None, progress: Progress | None) -> Checkpoint:
    snapshot = download(repo, revision=revision, variant=variant, progress=progress)
    if snapshot.kind == "artifact":
        raise CheckpointError(
            f"{repo} is an artifact that exporter made, not a checkpoint.",
            hint=f"Verify or run it: exporter verify {repo}; exporter run {repo} …",
        )
    return _open(repo, snapshot.root, snapshot.revision, variant)
