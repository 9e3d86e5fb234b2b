"""From what the user typed to a `Checkpoint` on this disk."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from exporter.checkpoints.checkpoint import Checkpoint, read_json
from exporter.checkpoints.hub import download, is_hub_id
from exporter.checkpoints.safety import check_folder, check_index
from exporter.errors import CheckpointError, UsageError
from exporter.progress import Progress


def resolve(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    variant: str | None = None,
    progress: Progress | None = None,
    allow_pickle: bool = False,
    config: str | None = None,
    tokenizer: str | None = None,
    base: str | None = None,
    skip: Collection[str] = (),
) -> Checkpoint:
    """Find a checkpoint.

    Args:
        source: `builtin:NAME`, a folder in diffusers layout, one file, or a Hub id `org/name`.
        revision: Branch, tag or commit of a Hub repository.
        variant: Weight variant, such as `fp16`.
        progress: Told of a download.
        allow_pickle: Open `.ckpt` and `.bin` weights, by PyTorch's restricted reader, where there is
            nothing better.
        config / tokenizer: Folders that tell what one file does not; see `single_file`.
        base: Checkpoint whose parts are taken for those that one file of SD3 or FLUX.1 lacks.
        skip: Components whose weights need not be downloaded, because nobody will open them.

    Raises:
        CheckpointError: It does not exist or is not a diffusers pipeline.
        NetworkError: The Hub could not be reached.
    """
    text = os.fspath(source)
    path = Path(text).expanduser()
    if path.is_file() and not text.startswith("builtin:"):
        from exporter.checkpoints.single_file import open_single_file

        return open_single_file(
            text, path, allow_pickle=allow_pickle, config=config, tokenizer=tokenizer,
            base=partial(_base, base, progress, allow_pickle) if base is not None else None, base_source=base,
        )  # fmt: skip
    for option, value in (("config", config), ("tokenizer", tokenizer), ("base", base)):
        if value is not None:
            raise UsageError(f"--{option} is for a checkpoint in one file, and {text} is none.")
    if text.startswith("builtin:"):
        return _builtin(text)
    if path.is_dir():
        return _open(text, path.resolve(), None, variant, allow_pickle)
    if is_hub_id(text):
        return _hub(text, revision, variant, progress, skip)
    raise CheckpointError(
        f"Source {text!r} does not exist: it is no folder, no `org/name` of the Hub, and no `builtin:` name.",
        hint="Try `exporter convert builtin:shapes --to onnx`.",
    )


def open_source(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    variant: str | None = None,
    progress: Progress | None = None,
    allow_pickle: bool = False,
    config: str | None = None,
    tokenizer: str | None = None,
    base: str | None = None,
    vae: str | None = None,
    textual_inversions: Sequence[str] = (),
    loras: Sequence[str] = (),
    scheduler: str | None = None,
    controlnets: Sequence[str] = (),
    ip_adapters: Sequence[str] = (),
    task: str | None = None,
) -> Checkpoint:
    """Find a checkpoint and lay the user's overlays over it; see `resolve` and `overlays.lay_over`.

    Raises:
        CheckpointError, NetworkError, UsageError: As these two.
    """
    checkpoint = resolve(
        source, revision=revision, variant=variant, progress=progress, allow_pickle=allow_pickle,
        config=config, tokenizer=tokenizer, base=base,
    )  # fmt: skip
    laid = (textual_inversions, loras, controlnets, ip_adapters)
    if vae is None and scheduler is None and task is None and not any(laid):
        return checkpoint
    from exporter.checkpoints.overlays import lay_over

    return lay_over(
        checkpoint, vae=vae, textual_inversions=textual_inversions, loras=loras, scheduler=scheduler,
        allow_pickle=allow_pickle, controlnets=controlnets, ip_adapters=ip_adapters, task=task,
    )  # fmt: skip


def _builtin(text: str) -> Checkpoint:
    from exporter import builtin

    name = text.removeprefix("builtin:")
    if name not in builtin.NAMES:
        raise CheckpointError(
            f"There is no embedded checkpoint {name!r}; there is: {', '.join(builtin.NAMES)}."
        )
    return _open(text, builtin.path(), None, None)


def _open(
    source: str, root: Path, revision: str | None, variant: str | None, allow_pickle: bool = False
) -> Checkpoint:
    index_path = root / "model_index.json"
    if not index_path.is_file():
        raise CheckpointError(
            f"{source} has no model_index.json, so it is not a diffusers pipeline folder.",
            hint="Point at the folder that holds model_index.json, unet/, vae/, text_encoder/ …",
        )
    index = read_json(index_path)
    check_index(source, index)
    checkpoint = Checkpoint(
        source=source, root=root, index=index, revision=revision, variant=variant, allow_pickle=allow_pickle
    )
    check_folder(source, root, list(checkpoint.component_classes))
    return checkpoint


def _base(source: str, progress: Progress | None, allow_pickle: bool, skip: Collection[str]) -> Checkpoint:
    return resolve(source, progress=progress, allow_pickle=allow_pickle, skip=skip)


def _hub(
    repo: str, revision: str | None, variant: str | None, progress: Progress | None, skip: Collection[str]
) -> Checkpoint:
    snapshot = download(repo, revision=revision, variant=variant, progress=progress, skip=skip)
    if snapshot.kind == "artifact":
        raise CheckpointError(
            f"{repo} is an artifact that exporter made, not a checkpoint.",
            hint=f"Verify or run it: exporter verify {repo}; exporter run {repo} …",
        )
    return _open(repo, snapshot.root, snapshot.revision, variant)
