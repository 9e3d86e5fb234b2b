"""Writes safetensors files from tensors on disk, a few megabytes at a time."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from exporter.checkpoints import StoredTensor
from exporter.errors import CheckpointError
from exporter.storage import TORCH_NAMES, lost_in_cast
from exporter.targets.safetensors.shards import Entry, header

if TYPE_CHECKING:
    import torch

CHUNK = 1 << 22
"""Elements a cast takes at a time need this many bytes in the source's dtype."""
BUFFER = 1 << 20
"""Bytes of a plain copy at a time."""
DIRTY = 1 << 28
"""Bytes of a file that may wait in memory for being flushed."""
AHEAD = 2
"""Pieces that may be written and wait for being hashed."""
LIMITS = {"float8_e4m3fn": "448", "float16": "65504", "bfloat16": "3.39e38"}


@dataclass
class Loss:
    """What casting cost: sums of squares of the values and of the errors, over all cast tensors."""

    signal: float = 0.0
    noise: float = 0.0

    def sqnr(self) -> float | None:
        """Signal to quantisation noise of the weights in dB; None when nothing was lost."""
        return 10 * math.log10(self.signal / self.noise) if self.noise > 0 and self.signal > 0 else None


class Writer:
    """Writes files; what is written is hashed meanwhile, and a file is flushed while the next one is written.

    A file is written under a temporary name and gets its own when it is on the disk, so a file that has its
    name is complete, whenever the process was stopped. Leaving the context waits for the flushing.

    Attributes:
        loss: What casting cost so far.
        digests: File → sha256 of what was written to it.
    """

    def __init__(self) -> None:
        self.loss = Loss()
        self.digests: dict[Path, Future[str]] = {}
        self._flusher = ThreadPoolExecutor(1)
        self._flushed: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flusher.shutdown(wait=True)
        if error is None:
            for each in self._flushed:
                each.result()

    def write(self, path: Path, entries: Sequence[Entry]) -> None:
        """Write one file.

        Raises:
            CheckpointError: A value does not fit the dtype, or a source ended too early.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.part")
        early: list[Future[None]] = []
        try:
            with beside.open("wb", buffering=0) as handle, Hashed(handle.fileno()) as out:
                out.write(memoryview(header(entries)))
                fresh = 0
                for entry in entries:
                    _write_tensor(out, entry, self.loss)
                    fresh += entry.source.nbytes
                    if fresh >= DIRTY:  # what is on its way already is not waited for at the end
                        fresh = 0
                        early.append(self._flusher.submit(_sync, beside))
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        self.digests[path] = out.digest
        self._flushed.append(self._flusher.submit(_flush, beside, path, early))


def _sync(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _flush(beside: Path, path: Path, early: Sequence[Future[None]]) -> None:
    """Give a file its name once it is on the disk.

    Linux tells of a failed write once; whoever opens the file later is told nothing, so the earlier flushes
    are asked too.
    """
    try:
        for each in early:
            each.result()
        _sync(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


class Hashed:
    """Writes to an open file, and hashes the same bytes in a thread beside it.

    Attributes:
        digest: sha256 hex of everything written; it comes when the context has been left.
        buffers: In turn; each is free again when it comes.
    """

    def __init__(self, descriptor: int) -> None:
        self.digest: Future[str] = Future()
        self.buffers = itertools.cycle([memoryview(bytearray(BUFFER)) for _ in range(AHEAD + 2)])
        self._descriptor = descriptor
        self._waiting: queue.Queue[memoryview | None] = queue.Queue(maxsize=AHEAD)
        threading.Thread(target=self._hash, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.put(None)

    def write(self, data: memoryview) -> None:
        """All of it. The bytes must stay as they are until `AHEAD + 1` further pieces are written."""
        self._waiting.put(data)
        while data:
            data = data[os.write(self._descriptor, data) :]

    def settle(self) -> None:
        """Wait until nothing waits: tensors made in memory are not kept beside each other."""
        self._waiting.join()

    def _hash(self) -> None:
        digest = hashlib.sha256()
        while True:
            piece = self._waiting.get()
            if piece is not None:
                digest.update(piece)
            ended = piece is None
            del piece  # a tensor made on the way goes now, not when the next one comes
            self._waiting.task_done()
            if ended:
                self.digest.set_result(digest.hexdigest())
                return


def _write_tensor(out: Hashed, entry: Entry, loss: Loss) -> None:
    plain = type(entry.source) is StoredTensor
    if entry.dtype == entry.source.dtype:
        if plain:
            _copy(out, entry.source)
        else:
            out.write(entry.source.raw())
            out.settle()
        return
    for piece in _pieces(entry.source) if plain else _flat_pieces(entry.source.load()):
        out.write(_bytes(_cast(piece, entry, loss)))


def _copy(out: Hashed, source: StoredTensor) -> None:
    """The bytes as they are, through buffers that stay in the processor's cache.

    No file system can share these bytes instead of copying them, for tensors do not begin where its blocks
    do; `copy_file_range` would copy them too, inside the kernel.
    """
    left = source.nbytes
    with source.file.path.open("rb", buffering=0) as handle:
        handle.seek(source.offset)
        for buffer in out.buffers:
            count = handle.readinto(buffer[: min(BUFFER, left)])
            if not count and left:
                raise _ended(source)
            out.write(buffer[:count])
            left -= count
            if not left:
                return


def _pieces(source: StoredTensor) -> Iterator[torch.Tensor]:
    import torch

    dtype = source.torch_dtype
    buffer = torch.empty(min(CHUNK, source.nbytes), dtype=torch.uint8)
    with source.file.path.open("rb", buffering=0) as handle:
        handle.seek(source.offset)
        for start in range(0, source.nbytes, CHUNK):
            piece = buffer[: min(CHUNK, source.nbytes - start)]
            view, got = memoryview(piece.numpy().data), 0
            while got < len(view):
                count = handle.readinto(view[got:])
                if not count:
                    raise _ended(source)
                got += count
            yield piece.view(dtype)


def _flat_pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    yield from tensor.detach().contiguous().reshape(-1).split(max(1, CHUNK // tensor.dtype.itemsize))


def _cast(piece: torch.Tensor, entry: Entry, loss: Loss) -> torch.Tensor:
    import torch

    name = TORCH_NAMES[entry.dtype]
    result = piece.to(getattr(torch, name))
    if lost_in_cast(piece, result):
        raise CheckpointError(
            f"Weight {entry.name!r} holds values that {name} cannot "
            f"(its limit is {LIMITS.get(name, 'lower')}).",
            hint="Convert with --dtype bfloat16, which has the range of float32."
            if name != "bfloat16"
            else "Convert with --dtype float32.",
        )
    if result.dtype.itemsize < 2:
        exact = piece.to(torch.float32)
        loss.signal += float(torch.sum(exact * exact, dtype=torch.float64))
        exact -= result.to(torch.float32)
        loss.noise += float(torch.sum(exact * exact, dtype=torch.float64))
    return result


def _bytes(tensor: torch.Tensor) -> memoryview:
    import torch

    return memoryview(tensor.view(torch.uint8).numpy().data)


def _ended(source: StoredTensor) -> CheckpointError:
    return CheckpointError(f"{source.file.path} ended while its weights were read; it has changed meanwhile.")
