"""From observed runs to a recording: names, dtypes and symbols of every call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from exporter.architectures.generic.inputs import sample_of
from exporter.architectures.generic.observing import Observer, Run, Seen, observe
from exporter.architectures.generic.ports import SCAFFOLD, native_size, takes_picture
from exporter.architectures.generic.recording import Call, Method, Recording, Tensor
from exporter.architectures.generic.symbols import Namer, Unexplained
from exporter.architectures.generic.trees import places_of, renamed
from exporter.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

    from exporter.checkpoints import Checkpoint

SUFFIX = {"forward": "", "decode": "_decoder", "encode": "_encoder"}
WIDE = ("float64", "float16", "bfloat16")
"""Dtypes that are float32 at a component's border."""
TIME = ("timestep", "timesteps", "t", "r")


def describe(checkpoint: Checkpoint) -> Recording:
    """Observe the pipeline of a checkpoint.

    Raises:
        CheckpointError: diffusers has no such pipeline, or a config is missing.
        UnsupportedError: It cannot be converted so; the message says which module, and why.
    """
    runs, observer, notes = observe(checkpoint)
    height, width, factor = native_size(observer.pipeline)
    calls = [_call(checkpoint, observer, runs, key, factor, notes) for key in runs["base"].calls]
    if not calls:
        raise UnsupportedError(
            f"A {checkpoint.pipeline_class} calls no module that has weights.", hint=SCAFFOLD
        )
    return Recording(
        pipeline_class=checkpoint.pipeline_class,
        height=height,
        width=width,
        factor=factor,
        pictures=runs["base"].pictures,
        calls=calls,
        notes=notes,
        picture=takes_picture(observer.pipeline),
    )


def _call(
    checkpoint: Checkpoint,
    observer: Observer,
    runs: Mapping[str, Run],
    key: tuple[str, str],
    factor: int,
    notes: list[str],
) -> Call:
    folder, method = key
    library, class_name = checkpoint.component_classes[folder]
    where = f"{folder} ({class_name}.{method})"
    seen = runs["base"].calls[key]
    first = seen[0]
    _check_alike(where, seen)
    constants = {p: v for p, v in first.numbers.items() if all(one.numbers[p] == v for one in seen)}
    comparable = {name: run for name, run in runs.items() if key in run.calls}
    for name, run in list(comparable.items()):
        moved = _difference(first, run.calls[key][0], constants)
        if moved is not None:
            notes.append(f"{where}: {name} is baked, for {moved}")
            del comparable[name]
    given, names = _inputs(first, constants)
    named, returned = _outputs(first, set(names.values()))
    tensors = [*(first.tensors.get(p) for p in given), *first.results.values()]
    shapes = {
        name: [tuple(v.shape) for v in _tensors(run.calls[key][0], given)] for name, run in comparable.items()
    }
    namer = Namer({name: run.knobs for name, run in comparable.items()}, shapes, factor)
    places = [*given, *first.results]
    dims = [_dims(where, place, namer, number, shapes["base"][number]) for number, place in enumerate(places)]
    count = len(given)
    inputs = [
        _tensor(names[place], _value(first, place), found)
        for place, found in zip(given, dims[:count], strict=True)
    ]
    outputs = [
        Tensor(name=named[place], dtype=_dtype(value), dims=found)
        for (place, value), found in zip(first.results.items(), dims[count:], strict=True)
    ]
    del tensors
    return Call(
        name=folder + SUFFIX[method],
        folder=folder,
        library=library,  # type: ignore[arg-type]
        class_name=class_name,
        method=_method(method),
        arguments=renamed(first.arguments, names, constants),
        inputs=inputs,
        returns=returned,
        outputs=outputs,
        used=_used(observer, key),
        rows=namer.rows,
        sequence=namer.sequence or 77,
    )


def _method(name: str) -> Method:
    assert name in SUFFIX
    return name  # type: ignore[return-value]


def _check_alike(where: str, calls: Sequence[Seen]) -> None:
    first = calls[0]
    for other in calls[1:]:
        if other.arguments != first.arguments or set(other.results) != set(first.results):
            raise UnsupportedError(
                f"The pipeline calls the {where} in more than one way ({_odd(first, other)}), "
                "and a graph has one.",
                hint=SCAFFOLD,
            )


def _odd(first: Seen, other: Seen) -> str:
    more = set(first.tensors) ^ set(other.tensors)
    if more:
        return f"with and without {sorted(more)[0]!r}"
    mine, theirs = first.arguments["named"], other.arguments["named"]
    odd = next((key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)), "its result")
    return f"{odd!r} differs"


def _difference(first: Seen, other: Seen, constants: Mapping[str, float]) -> str | None:
    """Why a call of another run is not the same call with other sizes; None where it is."""
    if other.arguments != first.arguments:
        return f"the pipeline calls it differently then ({_odd(first, other)})"
    moved = next((p for p, v in constants.items() if other.numbers[p] != v), None)
    if moved is not None:
        values = f"{constants[moved]:g} and {other.numbers[moved]:g}"
        return f"{moved!r} is a Python number that moves with it ({values})"
    ranks = [[t.dim() for t in each.tensors.values()] for each in (first, other)]
    return None if ranks[0] == ranks[1] else "tensors have another rank then"


def _inputs(first: Seen, constants: Mapping[str, float]) -> tuple[list[str], dict[str, str]]:
    """Places of the inputs in order, and their names: the last part of the place where that is unique."""
    places = [*first.tensors, *(p for p in first.numbers if p not in constants)]
    short = [place.rpartition(".")[2] for place in places]
    names = {}
    for place, last in zip(places, short, strict=True):
        good = last.isidentifier() and short.count(last) == 1
        names[place] = last if good else place.replace(".", "_")
    return places, names


def _outputs(first: Seen, taken: set[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """Names of the results by place, and the tree of the result with those names.

    No output has the name of an input: a graph holds both.
    """
    named = {}
    for place in first.results:
        name = place.replace("latent_dist.parameters", "latent_parameters") or "out"
        if name.isdigit():
            name = "sample" if len(first.results) == 1 else f"output_{name}"
        named[place] = f"out_{name}" if name in taken else name
    return named, renamed(first.returns, named, {})


def _tensors(seen: Seen, places: Sequence[str]) -> list[torch.Tensor]:
    return [*(_value(seen, place) for place in places), *seen.results.values()]


def _value(seen: Seen, place: str) -> torch.Tensor:
    import torch

    found = seen.tensors.get(place)
    return found if found is not None else torch.tensor(float(seen.numbers[place]))


def _dims(where: str, place: str, namer: Namer, tensor: int, shape: Sequence[int]) -> list[int | str]:
    try:
        return [namer.name(tensor, axis) for axis in range(len(shape))]
    except Unexplained as error:
        raise UnsupportedError(
            f"The generic route cannot say how the {where} changes with the picture: {place!r} {error}.",
            hint=SCAFFOLD,
        ) from error


def _tensor(name: str, value: torch.Tensor, dims: list[int | str]) -> Tensor:
    dtype = _dtype(value)
    if not dims and name in TIME:
        dtype = "float32"  # schedulers with fractional steps keep their value
    wide = value.float()
    scale = float(wide.std()) if value.numel() > 1 else 1.0
    return Tensor(
        name=name, dtype=dtype, dims=dims, sample=sample_of(value), scale=scale if scale > 0 else 1.0
    )


def _dtype(value: torch.Tensor) -> str:
    name = str(value.dtype).removeprefix("torch.")
    return "float32" if name in WIDE else name


def _used(observer: Observer, key: tuple[str, str]) -> list[str]:
    """Prefixes of the weights a method needs: of a `forward` all (none are named), of a half what ran."""
    if key[1] == "forward":
        return []
    module = observer.modules[key[0]]
    own = [name for name, _ in module.named_parameters() if "." not in name]
    return sorted({f"{part}." for part in observer.used[key]} | set(own))


__all__ = ["describe", "places_of"]
