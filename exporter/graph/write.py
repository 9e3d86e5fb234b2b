"""`write()`: a graph and its weights, streamed to disk."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.checkpoints import StoredTensor
from exporter.graph.build import Graph
from exporter.graph.weights import Recipe, Scratch, changed
from exporter.progress import NullProgress, Progress

if TYPE_CHECKING:
    import onnx_ir as ir

PAGE = 4096
LARGE = 1 << 20
ALIGNMENT = 64
"""Of small tensors; those of 1 MiB or more start on a page, so that a runtime can map them."""
COPIED = 16 << 20
"""Bytes that the system copies at a time: between two, progress is told."""
CANNOT_COPY = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}
"""Of `copy_file_range`: not between these files, or not on this system."""


@dataclass
class SharedData:
    """A data file that several graphs of one component share: what one wrote, the next one points at.

    Attributes:
        name: Of the file, in the component's folder.
        places: What is there already → its offset.
    """

    name: str
    places: dict[tuple[object, ...], int] = field(default_factory=dict)

    @staticmethod
    def key(recipe: Recipe) -> tuple[object, ...]:
        """What decides the bytes of a weight of one component."""
        return recipe.identity


def write(
    graph: Graph,
    folder: Path,
    *,
    name: str = "model.onnx",
    link: bool = False,
    shared: SharedData | None = None,
    reached: Callable[[int], None] | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write `model.onnx` and `model.onnx_data` into a folder.

    Weights go tensor by tensor from the checkpoint into the data file; the process never holds more
    than one. The bytes depend only on the graph and the weights.

    Args:
        graph: From `build()`.
        folder: Made if it is not there.
        name: Of the graph file; the data file has `_data` appended.
        link: For a temporary file only: do not copy what the checkpoint stores exactly as the graph wants it,
            but put a hard link to the checkpoint's file into the folder and point there. Never write through
            it. Where the file system allows no link, bytes are copied as ever. ONNX Runtime and OpenVINO
            open such a folder; `onnx.checker` refuses it.
        shared: Of graphs written one after the other: weights that are there already are not written again.
        reached: Told the size of the data file whenever it has grown; what lies there does not change.
        progress: Told the bytes written.

    Returns:
        The files, the graph first.

    Raises:
        CheckpointError: A weight does not fit the dtype, or its file changed meanwhile.
        OSError: The disk is full or not writable.
    """
    import onnx_ir as ir

    progress = progress or NullProgress()
    folder.mkdir(parents=True, exist_ok=True)
    shared = shared or SharedData(f"{name}_data")
    model_path, data_path = folder / name, folder / shared.name
    initializers = graph.model.graph.initializers
    progress.start(f"{folder.name}: weights", graph.nbytes)
    done, scratch = 0, Scratch()
    linked: dict[Path, Path | None] = {}
    try:
        with data_path.open("r+b" if shared.places else "wb", buffering=0) as data:
            data.seek(0, os.SEEK_END)
            for key, recipe in graph.weights.items():
                known = shared.places.get(shared.key(recipe))
                if known is not None:
                    initializers[key].const_value = _external(graph, key, data_path, known)
                    done += recipe.nbytes
                    continue
                source = _link(recipe.source, folder, linked) if link and recipe.verbatim else None
                if source is not None:
                    initializers[key].const_value = _external(graph, key, source, recipe.source.offset)
                    done += recipe.nbytes
                    progress.update(done)
                    continue
                start = data.tell()
                offset = start + -start % (PAGE if recipe.nbytes >= LARGE else ALIGNMENT)
                data.write(b"\0" * (offset - start))
                for count in _written(recipe, data, scratch):
                    done += count
                    progress.update(done)
                if reached is not None:
                    reached(data.tell())
                if data.tell() - offset != recipe.nbytes:
                    raise AssertionError(f"{key}: wrote {data.tell() - offset} bytes, not {recipe.nbytes}")
                initializers[key].const_value = _external(graph, key, data_path, offset)
                shared.places[shared.key(recipe)] = offset
        proto = ir.serde.serialize_model(graph.model)
        model_path.write_bytes(proto.SerializeToString(deterministic=True))
    finally:
        for key in graph.weights:  # the graph stays free of data, so that it can be written again
            initializers[key].const_value = None
    progress.done()
    return [model_path, data_path, *(path for path in linked.values() if path is not None)]


def _link(source: StoredTensor, folder: Path, linked: dict[Path, Path | None]) -> Path | None:
    """A hard link in `folder` to the file of a stored tensor, or None where there can be none."""
    if type(source) is not StoredTensor:
        return None
    original = source.file.path.resolve()
    if original not in linked:
        path = folder / f"weights_{len(linked)}.safetensors"
        try:
            path.unlink(missing_ok=True)
            os.link(original, path)
        except OSError:  # another file system, or one without hard links
            linked[original] = None
        else:
            linked[original] = path
    return linked[original]


def _external(graph: Graph, key: str, data_path: Path, offset: int) -> ir.ExternalTensor:
    import onnx_ir as ir

    recipe = graph.weights[key]
    dtype = graph.model.graph.initializers[key].dtype
    assert dtype is not None
    return ir.ExternalTensor(
        location=data_path.name,
        offset=offset,
        length=recipe.nbytes,
        dtype=dtype,
        shape=ir.Shape(recipe.shape),
        name=key,
        base_dir=data_path.parent,
    )


def _written(recipe: Recipe, data: io.FileIO, scratch: Scratch) -> Iterator[int]:
    """Append the bytes of a weight, and say how many after each piece.

    What lies in one file as it is wanted is copied by the system, without coming into this process (a third
    less time than reading and writing it); where the system cannot, as between some file systems, it is read
    and written.
    """
    source, left = recipe.source, recipe.nbytes
    if type(source) is StoredTensor and recipe.verbatim and hasattr(os, "copy_file_range"):
        with source.file.path.open("rb", buffering=0) as stored:
            place = source.offset
            while left:
                try:
                    count = os.copy_file_range(stored.fileno(), data.fileno(), min(left, COPIED), place)
                except OSError as error:
                    if error.errno not in CANNOT_COPY or left < recipe.nbytes:
                        raise
                    break
                if not count:
                    break
                place, left = place + count, left - count
                yield count
        if left < recipe.nbytes:
            if left:
                raise changed(source)
            return
    for piece in recipe.pieces(scratch):
        _write_all(data, piece)
        yield len(piece)


def _write_all(handle: io.FileIO, piece: memoryview) -> None:
    while len(piece):
        piece = piece[handle.write(piece) :]
