"""Which tensors go into which file, and what the files are called: as diffusers and transformers do it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exporter.checkpoints import StoredTensor
from exporter.checkpoints.safetensors_file import ITEM_BYTES


@dataclass(frozen=True)
class Entry:
    """One tensor to write.

    Attributes:
        name: In the file.
        dtype: Safetensors' name of the dtype to write.
        source: Where its values lie now.
    """

    name: str
    dtype: str
    source: StoredTensor

    @property
    def nbytes(self) -> int:
        return math.prod(self.source.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Layout:
    """Files of one component: name → entries in order of their bytes; the index, or None for one file."""

    files: dict[str, list[Entry]]
    index_name: str | None = None
    index: Mapping[str, Any] | None = None


def lay_out(entries: Iterable[Entry], *, stem: str, variant: str | None, max_shard_size: int) -> Layout:
    """Split a component into files.

    Tensors are taken by name, so that the result does not depend on how the source was split. As in
    `huggingface_hub.split_torch_state_dict_into_shards`, a file is closed before the tensor that would
    make it too large, and a tensor larger than the limit gets a file of its own.
    """
    shards: list[list[Entry]] = []
    current: list[Entry] = []
    size = 0
    for entry in sorted(entries, key=lambda e: e.name):
        if entry.nbytes > max_shard_size:
            shards.append([entry])
            continue
        if current and size + entry.nbytes > max_shard_size:
            shards.append(current)
            current, size = [], 0
        current.append(entry)
        size += entry.nbytes
    shards += [current] if current else []
    middle = f".{variant}" if variant else ""
    if len(shards) <= 1:
        return Layout({f"{stem}{middle}.safetensors": _in_file_order(shards[0] if shards else [])})
    names = [f"{stem}{middle}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    files = {name: _in_file_order(shard) for name, shard in zip(names, shards, strict=True)}
    index = {
        "metadata": {"total_size": sum(e.nbytes for shard in shards for e in shard)},
        "weight_map": dict(sorted((e.name, name) for name, shard in files.items() for e in shard)),
    }
    return Layout(files, f"{stem}.safetensors.index{middle}.json", index)


def _in_file_order(entries: Sequence[Entry]) -> list[Entry]:
    """Widest dtype first, then by name: every tensor is aligned, as the format's own writer has it."""
    return sorted(entries, key=lambda e: (-ITEM_BYTES[e.dtype], _RANK.get(e.dtype, 0), e.name))


_RANK = {"F64": 0, "I64": 1, "U64": 2, "F32": 0, "U32": 1, "I32": 2, "BF16": 0, "F16": 1, "U16": 2, "I16": 3}
"""The writer's order among dtypes of one width."""


def header(entries: Sequence[Entry]) -> bytes:
    """The length and the JSON header of a file, padded so that the data begins at a multiple of 8."""
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        end = offset + entry.nbytes
        described[entry.name] = {
            "dtype": entry.dtype, "shape": list(entry.source.shape), "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    raw = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw
