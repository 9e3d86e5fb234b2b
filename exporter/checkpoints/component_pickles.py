"""Pickled weights of one component folder (`pytorch_model.bin`, `*.ckpt`): opened only when allowed.

A pickle is a program. `torch.load(weights_only=True)` runs only the instructions that build tensors,
and `mmap=True` leaves their bytes on disk until they are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from exporter.checkpoints.safetensors_file import SafetensorsFile, StoredTensor
from exporter.errors import CheckpointError
from exporter.storage import SAFETENSORS_NAMES

if TYPE_CHECKING:
    import torch

SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")


class PickledFile:
    """Stands where a tensor's `file` is expected."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = None


@dataclass(frozen=True, eq=False)
class PickledTensor(StoredTensor):
    """A tensor that PyTorch mapped from a pickle; `offset` means nothing."""

    tensor: torch.Tensor

    def load(self) -> torch.Tensor:
        return self.tensor

    def raw(self) -> memoryview:
        import torch

        if self.nbytes == 0:
            return memoryview(b"")
        return memoryview(self.tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)

    @property
    def storage(self) -> tuple[int, int, tuple[int, ...]]:
        """The same for two names of one tensor."""
        return (self.tensor.data_ptr(), self.nbytes, tuple(self.tensor.stride()))


def read_pickle(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a pickle by name, mapped where its format allows it.

    Raises:
        CheckpointError: Not readable, it asks for more than tensors, or it holds no named tensors.
    """
    import torch

    try:
        try:
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used with files saved with" not in str(error):
                raise
            value = torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6
    except Exception as error:  # the reader raises whatever its parts do
        text = str(error)
        if "weights_only" in text or "Unsupported" in text:
            raise CheckpointError(
                f"{path.name} asks for more than tensors when it is opened, so it stays closed ({path}).",
                hint="Have its author save the weights as .safetensors.",
            ) from error
        reason = (text.strip().splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(f"{path.name} is not a usable PyTorch file: {reason} ({path}).") from error
    inner = value.get("state_dict") if isinstance(value, Mapping) else None
    named: Any = inner if isinstance(inner, Mapping) else value
    file = cast("SafetensorsFile", cast(Any, PickledFile(path)))
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in named.items() if isinstance(named, Mapping) else ():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            continue
        dtype = SAFETENSORS_NAMES.get(str(tensor.dtype).removeprefix("torch."))
        if dtype is None or tensor.layout != torch.strided:
            raise CheckpointError(
                f"{path.name} holds {name!r} as {tensor.dtype}, which has no safetensors form."
            )
        nbytes = tensor.numel() * tensor.dtype.itemsize
        tensors[name] = PickledTensor(name, dtype, tuple(tensor.shape), file, 0, nbytes, tensor.detach())
    if not tensors:
        raise CheckpointError(f"{path.name} holds no tensors by name ({path}).")
    return tensors
