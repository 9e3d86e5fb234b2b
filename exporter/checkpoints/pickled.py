"""`.ckpt` and other pickles: opened only when asked for, and then by PyTorch's restricted reader.

A pickle is a program. `torch.load(weights_only=True)` runs only the instructions that build tensors;
the zip archive around it is looked through first, because its reader trusts what it says.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from exporter.checkpoints.derived import SAFETENSORS_NAMES, held
from exporter.checkpoints.safetensors_file import StoredTensor
from exporter.errors import CheckpointError

if TYPE_CHECKING:
    import torch

SUFFIXES = {".ckpt", ".pt", ".pth", ".bin"}
MAX_ENTRIES = 100_000
MAX_PICKLE = 100_000_000
MAX_DEPTH = 4


def refuse(path: Path) -> CheckpointError:
    """The error for a pickle that nobody allowed."""
    return CheckpointError(
        f"{path.name} is a pickle, which can run code when it is opened, so it is refused.",
        hint="Look for the same file as .safetensors. If you trust its author, add --allow-pickle: "
        "it is then read by PyTorch's restricted reader, which builds tensors only.",
    )


def read_pickle(path: Path, *, allow: bool) -> Any:
    """The object in a pickle, its tensors mapped from the file where its format allows it.

    Raises:
        CheckpointError: Not allowed, not readable, or it asks for more than tensors.
    """
    if not allow:
        raise refuse(path)
    import torch

    zipped = zipfile.is_zipfile(path)
    if zipped:
        _check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # the reader raises whatever its parts do
        text = str(error)
        if "weights_only" in text or "Unsupported global" in text or "Unsupported operand" in text:
            raise CheckpointError(
                f"{path.name} asks for more than tensors when it is opened, so it stays closed.",
                hint="Have its author save the weights as .safetensors.",
            ) from error
        reason = (text.strip().splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(f"{path.name} is not a usable PyTorch file: {reason}.") from error


def read_state_dict(path: Path, *, allow: bool) -> dict[str, StoredTensor]:
    """The tensors of a pickled checkpoint by name.

    Raises:
        CheckpointError: As `read_pickle`, or it holds no tensors by name.
    """
    return {name: held(name, tensor, path) for name, tensor in tensors_of(read_pickle(path, allow=allow))}


def tensors_of(value: Any) -> list[tuple[str, torch.Tensor]]:
    """Named tensors of a loaded object; a `state_dict` or `params` inside it is looked into."""
    import torch

    for _ in range(MAX_DEPTH):
        inner = value.get("state_dict", value.get("params_ema")) if isinstance(value, Mapping) else None
        if not isinstance(inner, Mapping):
            break
        value = inner
    if not isinstance(value, Mapping):
        return []
    return [
        (name, tensor)
        for name, tensor in value.items()
        if isinstance(name, str)
        and isinstance(tensor, torch.Tensor)
        and tensor.layout == torch.strided
        and str(tensor.dtype).removeprefix("torch.") in SAFETENSORS_NAMES
    ]


def _check_archive(path: Path) -> None:
    """Names stay inside, nothing is compressed (so nothing can swell), and the program is short."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path.name} is a damaged archive: {error}.") from error
    if len(entries) > MAX_ENTRIES:
        raise CheckpointError(f"{path.name} holds {len(entries)} entries; refused.")
    size, seen = path.stat().st_size, set()
    for entry in entries:
        pure = PurePosixPath(entry.filename)
        if pure.is_absolute() or ".." in pure.parts or "\\" in entry.filename or ":" in entry.filename:
            raise CheckpointError(
                f"{path.name} names a path outside its archive ({entry.filename!r}); refused."
            )
        if entry.filename in seen:
            raise CheckpointError(f"{path.name} names {entry.filename!r} twice; refused.")
        seen.add(entry.filename)
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
            raise CheckpointError(
                f"{path.name} holds compressed entries, which PyTorch never writes; refused."
            )
        if pure.name == "data.pkl" and entry.file_size > MAX_PICKLE:
            raise CheckpointError(f"{path.name} holds a program of {entry.file_size} bytes; refused.")
