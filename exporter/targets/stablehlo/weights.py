"""`weights.safetensors`: streamed from the checkpoint, never more than one tensor in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from exporter.errors import ArtifactError
from exporter.graph.weights import Recipe, Scratch
from exporter.progress import Progress
from exporter.storage import SAFETENSORS_NAMES

ALIGNMENT = 8
"""Of the header, as the format's own writer has it."""


def write_weights(
    path: Path, weights: Mapping[str, Recipe], metadata: Mapping[str, str], progress: Progress
) -> None:
    """Write the tensors in order of their names.

    Args:
        path: Its folder exists.
        weights: Name → how its bytes are made.
        metadata: Texts for the header.
        progress: Told the bytes written.

    Raises:
        CheckpointError: A file of the checkpoint ends too early.
        OSError: The disk is full or not writable.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    place = 0
    for name, recipe in sorted(weights.items()):
        header[name] = {
            "dtype": SAFETENSORS_NAMES[recipe.dtype],
            "shape": list(recipe.shape),
            "data_offsets": [place, place + recipe.nbytes],
        }
        place += recipe.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    progress.start(f"{path.parent.name}: weights", place)
    done, scratch = 0, Scratch()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, recipe in sorted(weights.items()):
            for piece in recipe.pieces(scratch):
                file.write(piece)
                done += len(piece)
                progress.update(done)
    progress.done()


def read_header(path: Path) -> tuple[dict[str, str], dict[str, tuple[str, tuple[int, ...]]]]:
    """The metadata, and the dtype (`F32`) and shape of each tensor.

    Raises:
        ArtifactError: The file is missing, cut short, or no safetensors file.
    """
    where = f"{path.parent.name}/{path.name}"
    hint = "Copy the artifact again in full, or convert again."
    if not path.is_file():
        raise ArtifactError(f"{where} is missing.", hint=hint)
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(size))
        metadata = header.pop("__metadata__", {})
        tensors = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if 8 + size + end != path.stat().st_size:
            raise ValueError("its tensors do not end where the file does")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{where} is damaged ({error}).", hint=hint) from error
    return metadata, tensors
