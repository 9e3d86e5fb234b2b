"""Views on stored tensors under another name, shape or place, and tensors made on the way.

A reshape and a cut along the first axis are still one run of bytes in the file, so they stay plain
`StoredTensor`s and keep streaming. Everything else is a `MadeTensor`, whose values appear when asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from exporter.checkpoints.safetensors_file import ITEM_BYTES, SafetensorsFile, StoredTensor

if TYPE_CHECKING:
    import torch

SAFETENSORS_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64",
    "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip


class OtherFile:
    """Stands where a tensor's `file` is expected, for values that do not lie in a safetensors file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = None


@dataclass(frozen=True)
class MadeTensor(StoredTensor):
    """A tensor that `make` computes each time it is loaded.

    Attributes:
        make: Returns the values with `shape` and `dtype`.
    """

    make: Callable[[], torch.Tensor]

    def load(self) -> torch.Tensor:
        return self.make()

    def release(self) -> None:
        """Nothing is held: the values are made anew each time."""

    def raw(self) -> memoryview:
        """The bytes of the made values, little-endian, row-major."""
        import torch

        flat = self.make().detach().contiguous().reshape(-1)
        return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")


def made(
    name: str, dtype: str, shape: tuple[int, ...], origin: StoredTensor, make: Callable[[], torch.Tensor]
) -> MadeTensor:
    """A made tensor that is told to come from the file of `origin`."""
    nbytes = math.prod(shape) * ITEM_BYTES[dtype]
    return MadeTensor(name, dtype, shape, origin.file, origin.offset, nbytes, make)


def held(name: str, tensor: torch.Tensor, path: Path) -> MadeTensor:
    """A tensor that is in memory (or mapped by PyTorch) already."""
    dtype = SAFETENSORS_NAMES[str(tensor.dtype).removeprefix("torch.")]
    file = cast("SafetensorsFile", cast(Any, OtherFile(path)))
    return MadeTensor(
        name, dtype, tuple(tensor.shape), file, 0, tensor.numel() * ITEM_BYTES[dtype], lambda: tensor
    )


def reshaped(tensor: StoredTensor, shape: tuple[int, ...]) -> StoredTensor:
    """The same values, row-major, in another shape."""
    if math.prod(shape) != tensor.numel:
        raise ValueError(f"{tensor.name}: {tensor.shape} does not reshape to {shape}")
    if type(tensor) is StoredTensor:
        return replace(tensor, shape=shape)
    return made(tensor.name, tensor.dtype, shape, tensor, lambda: tensor.load().reshape(shape))


def rows(tensor: StoredTensor, start: int, stop: int) -> StoredTensor:
    """`tensor[start:stop]`, with 0 <= start <= stop <= the first dimension."""
    if not 0 <= start <= stop <= tensor.shape[0]:
        raise ValueError(f"{tensor.name}: no rows {start}:{stop} in {tensor.shape}")
    shape = (stop - start, *tensor.shape[1:])
    name = f"{tensor.name}[{start}:{stop}]"  # graphs find a weight by its tensor's name: no two share one
    if type(tensor) is StoredTensor:
        row = tensor.nbytes // tensor.shape[0] if tensor.shape[0] else 0
        offset = tensor.offset + start * row
        return replace(tensor, name=name, shape=shape, offset=offset, nbytes=(stop - start) * row)
    return made(name, tensor.dtype, shape, tensor, lambda: tensor.load()[start:stop])


def transposed(tensor: StoredTensor) -> StoredTensor:
    """A matrix with its axes exchanged."""
    first, second = tensor.shape
    return made(tensor.name, tensor.dtype, (second, first), tensor, lambda: tensor.load().T.contiguous())


def swapped(tensor: StoredTensor) -> StoredTensor:
    """The second half of the rows before the first one. The tensor is read when its values are asked for.

    Raises:
        ValueError: It has no rows, or an odd number of them.
    """
    if not tensor.shape or tensor.shape[0] % 2:
        raise ValueError(f"{tensor.name}: {tensor.shape} has no two halves")
    half = tensor.shape[0] // 2

    def make() -> torch.Tensor:
        import torch

        values = tensor.load()
        return torch.cat([values[half:], values[:half]])

    return made(tensor.name, tensor.dtype, tensor.shape, tensor, make)


def joined(name: str, tensors: Sequence[StoredTensor]) -> MadeTensor:
    """Tensors below one another, along the first axis, in the dtype of the first.

    Raises:
        ValueError: They differ in their other axes.
    """
    first, others = tensors[0], tensors[1:]
    if any(each.shape[1:] != first.shape[1:] for each in others):
        raise ValueError(f"{name}: {[each.shape for each in tensors]} do not go below one another")

    def make() -> torch.Tensor:
        import torch

        loaded = [each.load() for each in tensors]
        return torch.cat([each.to(loaded[0].dtype) for each in loaded])

    shape = (sum(each.shape[0] for each in tensors), *first.shape[1:])
    return made(name, first.dtype, shape, first, make)
