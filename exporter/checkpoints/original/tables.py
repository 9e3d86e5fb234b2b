"""A layout as a table: for every tensor of the original, which tensors of diffusers it holds.

A table is made for one model, with every block it has, so that what a file lacks and what it has too much are
both seen before any work. Cutting a matrix into rows stays a run of bytes in the file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from exporter.checkpoints.derived import rows, swapped
from exporter.checkpoints.safetensors_file import StoredTensor
from exporter.errors import CheckpointError

Tensors = Mapping[str, StoredTensor]
BOTH = ("weight", "bias")
SHOWN = 3


@dataclass(frozen=True)
class Place:
    """Where one tensor of the original goes.

    Attributes:
        names: diffusers' names; several where it is cut along its rows.
        rows: Of each of them; empty means equal parts.
        swap: Its halves change places: the original's modulation of an output is (shift, scale), diffusers'
            is (scale, shift).
    """

    names: tuple[str, ...]
    rows: tuple[int, ...] = ()
    swap: bool = False


Table = dict[str, Place]


def linear(old: str, *new: str, rows: tuple[int, ...] = (), swap: bool = False) -> Table:
    """The entries of one layer with weight and bias."""
    return {
        f"{old}.{kind}": Place(tuple(f"{name}.{kind}" for name in new), rows=rows, swap=swap) for kind in BOTH
    }


def one(old: str, new: str) -> Table:
    """The entry of one tensor."""
    return {old: Place((new,))}


def joined(parts: Iterable[Table]) -> Table:
    result: Table = {}
    for part in parts:
        result.update(part)
    return result


def weights(tensors: Tensors, table: Table, what: str) -> dict[str, StoredTensor]:
    """Every tensor by diffusers' name.

    Args:
        tensors: By the original's names, without prefix.
        what: They belong to, for messages (`transformer`).

    Raises:
        CheckpointError: Tensors are missing (the first are named), have no place in the model, or cannot be
            cut as the table says.
    """
    check_names(tensors, table, what)
    result: dict[str, StoredTensor] = {}
    for old, place in table.items():
        tensor = tensors[old]
        try:
            if place.swap:
                tensor = swapped(tensor)
            result.update(zip(place.names, cut(tensor, place), strict=True))
        except ValueError as error:
            raise CheckpointError(
                f"The file's {what} has an odd {old!r}: its shape {list(tensor.shape)} does not fit the rest."
            ) from error
    return result


def check_names(tensors: Collection[str], table: Collection[str], what: str) -> None:
    """
    Raises:
        CheckpointError: Naming what is missing, or what has no place.
    """
    missing = [name for name in table if name not in tensors]
    if missing:
        raise CheckpointError(
            f"The file's {what} is incomplete: it lacks {_list(missing)}.",
            hint="Download the file again, or take the complete one of its authors.",
        )
    unknown = [name for name in tensors if name not in table]
    if unknown:
        raise CheckpointError(
            f"The file's {what} holds {_list(unknown)}, which no model of this kind has.",
            hint="If diffusers reads it, save it with `save_pretrained(...)` and convert that folder.",
        )


def cut(tensor: StoredTensor, place: Place) -> list[StoredTensor]:
    """The tensor's rows, shared among the names of its place.

    Raises:
        ValueError: They are not so many.
    """
    if len(place.names) == 1:
        return [tensor]
    total = tensor.shape[0] if tensor.shape else 0
    sizes = place.rows or (total // len(place.names),) * len(place.names)
    if sum(sizes) != total:
        raise ValueError(f"{tensor.name}: {total} rows, not {sum(sizes)}")
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [rows(tensor, start, start + size) for start, size in zip(starts, sizes, strict=True)]


def shape_of(tensors: Tensors, name: str, dims: int, what: str) -> tuple[int, ...]:
    """The shape of a tensor that shows a model's size.

    Raises:
        CheckpointError: It is missing, or has another number of dimensions, or an empty one.
    """
    shape = tensors[name].shape if name in tensors else None
    if shape is None:
        raise CheckpointError(
            f"The file's {what} is incomplete: it lacks {name!r}.",
            hint="Download the file again, or take the complete one of its authors.",
        )
    if len(shape) != dims or not all(shape):
        raise CheckpointError(f"The file's {what} has an odd {name!r}: its shape is {list(shape)}.")
    return shape


def count(tensors: Collection[str], block: str, what: str) -> int:
    """How many blocks there are (`double_blocks.0.…`, `double_blocks.1.…`).

    Raises:
        CheckpointError: None, or one between them is missing.
    """
    start = f"{block}."
    found = {name[len(start) :].split(".")[0] for name in tensors if name.startswith(start)}
    wanted = [str(number) for number in range(len(found))]
    missing = [number for number in wanted if number not in found]
    if missing or not found:
        raise CheckpointError(
            f"The file's {what} is incomplete: it lacks {_list([f'{start}{n}' for n in missing or ['0']])}.",
            hint="Download the file again, or take the complete one of its authors.",
        )
    return len(found)


def _list(names: list[str]) -> str:
    shown = ", ".join(repr(name[:200]) for name in names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
