"""Where each weight of a graph comes from, and how its bytes are made."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import FileIO
from typing import TYPE_CHECKING, Literal

from exporter.checkpoints import StoredTensor
from exporter.errors import CheckpointError

if TYPE_CHECKING:
    import torch

CHUNK = 1 << 20
"""Bytes read at a time: they stay in the processor's cache between reading and writing."""

STORED_AS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32"}
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4}


@dataclass(frozen=True)
class Step:
    """One change of layout: `permute` by axes, or `reshape` to a shape."""

    kind: Literal["permute", "reshape"]
    argument: tuple[int, ...]


@dataclass(frozen=True)
class Recipe:
    """How to make one initializer from a tensor of the checkpoint.

    Attributes:
        source: The stored tensor.
        dtype: numpy name of the dtype to write.
        shape: Of the initializer, after all steps.
        steps: Changes of layout, in order.
    """

    source: StoredTensor
    dtype: str
    shape: tuple[int, ...]
    steps: tuple[Step, ...] = ()

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def identity(self) -> tuple[object, ...]:
        """What decides the bytes, among the weights of one component."""
        return (self.source.name, self.dtype, self.shape, self.steps)

    @property
    def moves(self) -> bool:
        """Whether the order of the elements changes (a reshape alone keeps it)."""
        return any(step.kind == "permute" for step in self.steps)

    @property
    def verbatim(self) -> bool:
        """The stored bytes are the wanted bytes."""
        return not self.moves and self.source.dtype == STORED_AS[self.dtype]

    def permuted(self, axes: tuple[int, ...]) -> Recipe:
        shape = tuple(self.shape[axis] for axis in axes)
        return replace(self, shape=shape, steps=(*self.steps, Step("permute", axes)))

    def reshaped(self, shape: tuple[int, ...]) -> Recipe:
        return replace(self, shape=shape, steps=(*self.steps, Step("reshape", shape)))

    def tensor(self) -> torch.Tensor:
        """The whole initializer, contiguous, read from disk rather than mapped.

        Raises:
            CheckpointError: A weight does not fit float16, or the file ends too early.
        """
        return self._made(Scratch()).clone()

    def pieces(self, scratch: Scratch | None = None) -> Iterator[memoryview]:
        """The bytes to write, little-endian, in order. Each piece is valid until the next is asked for.

        Weights are read in pieces of at most `CHUNK` bytes unless their layout changes, so the process
        stays small whatever the size of the model.

        Args:
            scratch: Buffers to work in; pass the same ones for all weights of a file.

        Raises:
            CheckpointError: A weight does not fit float16, or the file ends too early.
        """
        import torch

        scratch = scratch or Scratch()
        if type(self.source) is not StoredTensor or self.moves:
            yield _bytes_of(self._made(scratch))
            return
        wanted = getattr(torch, self.dtype)
        stored = self.source.torch_dtype
        with self.source.file.path.open("rb", buffering=0) as handle:
            handle.seek(self.source.offset)
            for start in range(0, self.source.nbytes, CHUNK):
                piece = scratch.first(min(CHUNK, self.source.nbytes - start))
                _fill(piece, handle, self.source)
                if stored != wanted:
                    piece = self._cast(piece.view(stored), scratch)
                yield _bytes_of(piece)

    def _made(self, scratch: Scratch) -> torch.Tensor:
        """The whole initializer, in a scratch buffer."""
        import torch

        source = self.source
        if type(source) is StoredTensor:
            raw = scratch.first(source.nbytes)
            with source.file.path.open("rb", buffering=0) as handle:
                handle.seek(source.offset)
                for start in range(0, source.nbytes, CHUNK):
                    _fill(raw[start : start + CHUNK], handle, source)
            tensor = raw.view(source.torch_dtype).view(source.shape)
        else:
            tensor = source.load()  # made on the way (a merged overlay), not lying in one file
        for step in self.steps:
            move = tensor.permute if step.kind == "permute" else tensor.reshape
            tensor = move(step.argument)
        result = scratch.second(self.nbytes).view(getattr(torch, self.dtype)).view(self.shape)
        result.copy_(tensor)
        self._check(result)
        return result

    def _cast(self, piece: torch.Tensor, scratch: Scratch) -> torch.Tensor:
        import torch

        wanted = getattr(torch, self.dtype)
        result = scratch.second(piece.numel() * wanted.itemsize).view(wanted)
        result.copy_(piece)
        self._check(result)
        return result

    def _check(self, tensor: torch.Tensor) -> None:
        if self.dtype == "float16" and not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"Weight {self.source.name!r} holds values that float16 cannot (its limit is 65504).",
                hint="Export with --dtype float32.",
            )


class Scratch:
    """Two buffers that grow to the largest tensor and are used again: the kernel clears fresh memory."""

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor | None] = [None, None]

    def first(self, size: int) -> torch.Tensor:
        """`size` bytes, as uint8; whatever was in them before."""
        return self._take(0, size)

    def second(self, size: int) -> torch.Tensor:
        return self._take(1, size)

    def _take(self, which: int, size: int) -> torch.Tensor:
        import torch

        buffer = self._buffers[which]
        if buffer is None or buffer.numel() < size:
            self._buffers[which] = None  # freed before the larger one is made
            buffer = self._buffers[which] = torch.empty(max(size, CHUNK), dtype=torch.uint8)
        return buffer[:size]


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    import torch

    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _fill(piece: torch.Tensor, handle: FileIO, source: StoredTensor) -> None:
    """Read exactly a piece. Reading keeps the pages out of this process; a mapping would not."""
    view, got = memoryview(piece.numpy().data), 0
    while got < len(view):
        count = handle.readinto(view[got:])
        if not count:
            raise changed(source)
        got += count


def changed(source: StoredTensor) -> CheckpointError:
    """The file of a weight is shorter than it was when it was opened."""
    return CheckpointError(f"{source.file.path} ended while its weights were read; it has changed meanwhile.")
