"""From what the user typed to a `Checkpoint` on this disk."""

from __future__ import annotations

import os
import re
from pathlib import Path

from exporter.checkpoints.checkpoint import Checkpoint, read_json
from exporter.errors import CheckpointError, NetworkError

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
WANTED = ["model_index.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors"]
PICKLES = ["*/*.bin", "*/*.ckpt"]


def resolve(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    variant: str | None = None,
    allow_pickle: bool = False,
) -> Checkpoint:
    """Find a checkpoint.

    Args:
        source: `builtin:NAME`, a folder in diffusers layout, or a Hub id `org/name`.
        revision: Branch, tag or commit of a Hub repository.
        variant: Weight variant, such as `fp16`.
        allow_pickle: Open `.bin` and `.ckpt` weights, by PyTorch's restricted reader, where a component
            has nothing better.

    Raises:
        CheckpointError: It does not exist or is not a diffusers pipeline.
        NetworkError: The Hub could not be reached.
    """
    text = os.fspath(source)
    if text.startswith("builtin:"):
        return _builtin(text)
    path = Path(text).expanduser()
    if path.is_dir():
        return _folder(text, path, variant, allow_pickle)
    if path.is_file():
        raise CheckpointError(
            f"{text} is a single file; this version reads diffusers folders.",
            hint="Convert it with diffusers' `from_single_file(...).save_pretrained(...)` first.",
        )
    if HUB_ID.match(text) and not text.startswith(("./", "../")):
        return _hub(text, revision, variant, allow_pickle)
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


def _folder(text: str, path: Path, variant: str | None, allow_pickle: bool) -> Checkpoint:
    return _open(text, path.resolve(), None, variant, allow_pickle)


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
    if not isinstance(index.get("_class_name"), str):
        raise CheckpointError(f"model_index.json of {source} names no pipeline (`_class_name`).")
    for name in index:
        if Path(name).name != name or name in {"", ".", ".."}:
            raise CheckpointError(
                f"model_index.json of {source} names a folder outside itself ({name!r}); refused."
            )
    return Checkpoint(
        source=source, root=root, index=index, revision=revision, variant=variant, allow_pickle=allow_pickle
    )


def _hub(repo: str, revision: str | None, variant: str | None, allow_pickle: bool) -> Checkpoint:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted = [*WANTED, *PICKLES] if allow_pickle else WANTED
    try:
        root = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except GatedRepoError as error:
        raise NetworkError(
            f"{repo} is gated and this machine has no access to it.",
            hint="Accept its terms on the Hub, then `hf auth login`.",
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{repo} has no revision {revision!r}.") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{repo} is neither a folder here nor a repository on the Hub (or it is private).",
            hint="Check the name; for a private repository run `hf auth login`.",
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise NetworkError(
            f"{repo} is no folder here, not in the local Hub cache, and the Hub cannot be reached.",
            hint="Check the path or the network, or use `builtin:shapes`, which needs neither.",
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise NetworkError(f"Downloading {repo} failed: {type(error).__name__}.") from error
    sha = root.name if re.fullmatch(r"[0-9a-f]{40}", root.name) else revision
    return _open(repo, root, sha, variant, allow_pickle)
