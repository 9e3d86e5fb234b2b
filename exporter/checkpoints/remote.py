"""A repository of the Hub as it can be known without fetching weights: its small files, and the headers of
its weight files, by requests for a range of their first bytes."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exporter.artifact import MANIFEST, Manifest
from exporter.checkpoints.checkpoint import read_json
from exporter.checkpoints.hub import HubFile, ask, check_content, described, get_file, repo_info
from exporter.checkpoints.patience import Patience
from exporter.checkpoints.safetensors_file import ITEM_BYTES, MAX_DIMS, MAX_SIZE
from exporter.checkpoints.safety import MAX_JSON, check_index
from exporter.checkpoints.selection import select_files
from exporter.errors import CheckpointError

if TYPE_CHECKING:
    from huggingface_hub.utils import SafetensorsFileMetadata

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name → safetensors' name of the dtype, shape."""


@dataclass(frozen=True)
class Remote:
    """What a repository holds.

    Attributes:
        index: `model_index.json`.
        configs: Folder → its `config.json`, for parts that have one.
        tensors: Folder → the tensors of its weight files.
        manifest: Of an artifact of ours.
        revision: Commit sha.
    """

    repo: str
    revision: str | None
    index: Mapping[str, Any]
    configs: Mapping[str, dict[str, Any]]
    tensors: Mapping[str, Tensors]
    manifest: Manifest | None = None


def look(
    repo: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    patience: Patience | None = None,
) -> Remote:
    """Read what a repository says of itself.

    Raises:
        NetworkError: The Hub cannot be reached or refuses.
        CheckpointError: Neither a pipeline nor an artifact, or a header that cannot be true.
    """
    patience = patience or Patience()
    info = ask(lambda: repo_info(repo, revision), repo, revision, patience)
    files = {file.path: file for file in map(described, info.siblings or ())}

    def small(name: str) -> dict[str, Any]:
        if files[name].size > MAX_JSON:
            raise CheckpointError(f"{name} of {repo} has {files[name].size} bytes, too many for JSON.")
        path = ask(lambda: get_file(repo, info.sha, name), repo, info.sha, patience)
        check_content(path, files[name])
        return read_json(path)

    manifest = None
    if MANIFEST in files:
        try:
            manifest = Manifest.model_validate(small(MANIFEST))
        except ValueError as error:
            raise CheckpointError(f"{MANIFEST} of {repo} is no valid manifest.") from error
    if "model_index.json" not in files:
        raise CheckpointError(f"{repo} has no model_index.json, so it is not a diffusers pipeline.")
    index = small("model_index.json")
    check_index(repo, index)
    if manifest is not None and manifest.target != "safetensors":
        return Remote(repo, info.sha, index, {}, {}, manifest)
    if manifest is not None:
        variant = next((r.details["variant"] for r in manifest.components if "variant" in r.details), None)
    chosen = select_files(files, index, variant)
    configs, tensors = {}, {}
    for folder in sorted({name.split("/")[0] for name in chosen if "/" in name}):
        if f"{folder}/config.json" not in files:
            continue
        configs[folder] = small(f"{folder}/config.json")
        found: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name in chosen:
            if name.startswith(f"{folder}/") and name.endswith(".safetensors"):
                found |= header(repo, info.sha, files[name], patience)
        tensors[folder] = found
    return Remote(repo, info.sha, index, configs, tensors, manifest)


def header(repo: str, sha: str | None, file: HubFile, patience: Patience) -> Tensors:
    """The tensors of one safetensors file, by a request for its first bytes.

    Raises:
        CheckpointError: What it says of itself does not fit the file's size.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    def bad(why: str) -> CheckpointError:
        return CheckpointError(f"{file.path} of {repo} is not a usable safetensors file: {why}.")

    def request() -> SafetensorsFileMetadata:
        try:
            return HfApi().parse_safetensors_file_metadata(repo, file.path, revision=sha)
        except (SafetensorsParsingError, AttributeError, TypeError, RecursionError, struct.error) as error:
            raise bad("its header cannot be read") from error

    found = {}
    for name, tensor in ask(request, repo, sha, patience).tensors.items():
        shape, offsets = tensor.shape, tensor.data_offsets
        sane = tensor.dtype in ITEM_BYTES and isinstance(shape, list) and len(shape) <= MAX_DIMS
        sane = sane and len(offsets) == 2
        sane = sane and all(type(n) is int and 0 <= n <= MAX_SIZE for n in (*shape, *offsets))
        if not sane or math.prod(shape) * ITEM_BYTES[tensor.dtype] != offsets[1] - offsets[0]:
            raise bad(f"tensor {name[:200]!r} does not have the bytes its shape asks for")
        if offsets[1] > file.size:
            raise bad(f"tensor {name[:200]!r} ends behind the end of the file")
        found[name] = (tensor.dtype, tuple(shape))
    return found
