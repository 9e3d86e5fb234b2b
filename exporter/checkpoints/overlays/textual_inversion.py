"""Textual inversion: new tokens, each with its row in the text encoder's embedding.

Files are those of diffusers (`{token: [vectors, width]}`), of the original web UI (`emb_params`, or a
pickle with `string_to_param`), and, for two encoders, `clip_l` / `clip_g`. A token of several vectors
becomes `token`, `token_1`, `token_2` …, as diffusers' pipelines expand it in a prompt.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.artifact import OverlayRecord
from exporter.checkpoints import pickled
from exporter.checkpoints.checkpoint import Checkpoint
from exporter.checkpoints.derived import held, made
from exporter.checkpoints.overlays.base import Overlaid, existing, record_of
from exporter.checkpoints.safetensors_file import SafetensorsFile, StoredTensor
from exporter.checkpoints.small_files import as_json, folder_of, read_folder
from exporter.errors import CheckpointError

if TYPE_CHECKING:
    import torch

TABLE = "text_model.embeddings.token_embedding.weight"
ENCODERS = {"text_encoder": ("tokenizer", "clip_l"), "text_encoder_2": ("tokenizer_2", "clip_g")}
MAX_VECTORS = 1000


@dataclass(frozen=True, kw_only=True)
class WithTokens(Overlaid):
    """Attributes:
    tokens: The new tokens, the one to write in a prompt first.
    vectors: Their rows by component folder, `[tokens, width]`.
    """

    tokens: tuple[str, ...]
    vectors: Mapping[str, StoredTensor] = field(repr=False, compare=False)

    def stored(self, folder: str) -> dict[str, StoredTensor]:
        if folder not in self.vectors:
            return self.base.stored(folder)
        if folder not in self._stores:
            tensors = dict(self.base.stored(folder))
            tensors[TABLE] = with_rows(tensors[TABLE], self.vectors[folder])
            self._stores[folder] = tensors
        return self._stores[folder]

    def reference_stored(self, folder: str) -> dict[str, StoredTensor]:
        if folder not in self.vectors:
            return self.base.reference_stored(folder)
        tensors = dict(self.base.reference_stored(folder))
        table = tensors[TABLE].load()
        width = (len(self.tokens), table.shape[1])
        longer = table.new_zeros((table.shape[0] + width[0], width[1]))
        longer[: table.shape[0]] = table
        for number, row in enumerate(self.vectors[folder].load()):
            longer[table.shape[0] + number] = row
        tensors[TABLE] = held(TABLE, longer, tensors[TABLE].file.path)
        return tensors


def with_tokens(checkpoint: Checkpoint, file: str, *, allow_pickle: bool = False) -> WithTokens:
    """Lay the tokens of one file over a checkpoint.

    Raises:
        CheckpointError: Not there, a pickle, no embedding, another width, a token that exists, or values
            that are not finite.
    """
    path = existing(file, "textual inversion")
    name, by_encoder = _read(path, checkpoint, allow_pickle)
    counts = {vectors.shape[0] for vectors in by_encoder.values()}
    if len(counts) != 1:
        raise CheckpointError(f"{path.name} has a different number of vectors for each text encoder.")
    count = counts.pop()
    tokens = tuple(name if n == 0 else f"{name}_{n}" for n in range(count))
    small = read_folder(checkpoint.root, list(checkpoint.component_classes))
    for folder, vectors in by_encoder.items():
        config = checkpoint.config(folder)
        width = int(config["hidden_size"])
        if tuple(vectors.shape) != (count, width):
            raise CheckpointError(
                f"{path.name} has vectors of {vectors.shape[-1]} numbers, the {folder} takes {width}.",
                hint="It was made for another model family.",
            )
        if not bool(vectors.load().float().isfinite().all()):
            raise CheckpointError(f"The vectors in {path.name} hold NaN or Inf.")
        rows = checkpoint.stored(folder)[TABLE].shape[0]
        small[f"{folder}/config.json"] = as_json({**config, "vocab_size": rows + count})
        tokenizer = ENCODERS[folder][0]
        for known, data in _tokenizer(checkpoint, tokenizer, tokens, rows, path).items():
            small[f"{tokenizer}/{known}"] = data
    record = OverlayRecord(
        kind="textual_inversion", source=file, files=[record_of(path)], details={"tokens": list(tokens)}
    )
    return WithTokens.over(checkpoint, (record,), root=folder_of(small), tokens=tokens, vectors=by_encoder)


def with_rows(table: StoredTensor, more: StoredTensor) -> StoredTensor:
    """`table` with the rows of `more` below, in the dtype of `table`."""

    def make() -> torch.Tensor:
        import torch

        first = table.load()
        return torch.cat([first, more.load().to(first.dtype)])

    return made(table.name, table.dtype, (table.shape[0] + more.shape[0], table.shape[1]), table, make)


def _read(path: Path, checkpoint: Checkpoint, allow_pickle: bool) -> tuple[str, dict[str, StoredTensor]]:
    """The token and its vectors by component folder."""
    name = path.stem
    if path.suffix.lower() in pickled.SUFFIXES:
        value = pickled.read_pickle(path, allow=allow_pickle)
        tensors, name = _unpack(value, path, name)
    elif path.suffix.lower() == ".safetensors":
        tensors = dict(SafetensorsFile(path).tensors)
    else:
        raise CheckpointError(
            f"{path.name} is no .safetensors file (nor .bin or .pt), so it holds no embedding."
        )
    if {"clip_l", "clip_g"} & set(tensors):
        wanted = {folder: key for folder, (_, key) in ENCODERS.items()}
        found = {
            f: tensors[k] for f, k in wanted.items() if k in tensors and f in checkpoint.component_classes
        }
        if "text_encoder_2" in checkpoint.component_classes and len(found) != 2:
            raise CheckpointError(f"{path.name} has vectors for one text encoder, the model has two.")
    elif len(tensors) == 1:
        key, tensor = next(iter(tensors.items()))
        name = name if key in ("emb_params", "*") else key
        found = {"text_encoder": tensor}
    else:
        raise CheckpointError(
            f"{path.name} is no textual inversion: it holds {len(tensors)} tensors, not one token's."
        )
    if not found or not name or name.strip() != name or any(c.isspace() for c in name):
        raise CheckpointError(f"{path.name} gives no usable token ({name!r}).")
    from exporter.checkpoints.derived import reshaped

    result = {}
    for folder, tensor in found.items():
        if len(tensor.shape) == 1:
            tensor = reshaped(tensor, (1, *tensor.shape))
        if len(tensor.shape) != 2 or not 0 < tensor.shape[0] <= MAX_VECTORS:
            raise CheckpointError(f"{path.name} holds a tensor of shape {list(tensor.shape)}, not vectors.")
        result[folder] = tensor
    return name, result


def _unpack(value: Any, path: Path, name: str) -> tuple[dict[str, StoredTensor], str]:
    """The tensors of a pickled embedding, the web UI's wrapping taken off."""
    if isinstance(value, Mapping) and isinstance(value.get("string_to_param"), Mapping):
        name = str(value.get("name") or name)
        value = value["string_to_param"]
    return {key: held(key, tensor, path) for key, tensor in pickled.tensors_of(value)}, name


def _tokenizer(
    checkpoint: Checkpoint, folder: str, tokens: tuple[str, ...], rows: int, path: Path
) -> dict[str, bytes]:
    """The files of a tokenizer that also knows the tokens, numbered from `rows` on."""
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(checkpoint.root / folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"The tokenizer {folder!r} of {checkpoint.source} cannot be opened: {error}."
        ) from error
    known = tokenizer.get_vocab()
    for token in tokens:
        if token in known:
            raise CheckpointError(
                f"The token {token!r} of {path.name} is in the tokenizer already.",
                hint="Rename the file, or the token in it.",
            )
    if len(tokenizer) != rows:
        raise CheckpointError(
            f"The tokenizer {folder!r} has {len(tokenizer)} tokens and the embedding {rows} rows, so a new "
            "token would get the wrong row."
        )
    tokenizer.add_tokens(list(tokens))
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer.save_pretrained(temporary)
        files = {p.name: p.read_bytes() for p in sorted(Path(temporary).iterdir()) if p.is_file()}
    settings = json.loads(files.get("tokenizer_config.json", b"{}"))
    settings.pop("name_or_path", None)
    files["tokenizer_config.json"] = as_json(settings)
    return files
