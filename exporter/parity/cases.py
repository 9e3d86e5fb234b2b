"""The inputs an artifact is judged on: recorded from the reference run, and shapes never traced.

Deterministic by seed. Every case is float32 / int64 as the reference saw it; what an artifact needs
otherwise is converted explicitly by `convert_inputs`, which says so.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from exporter.architectures.base import PACKED, is_rule, knobs_of, origin, runs_each_step
from exporter.architectures.safety_checker import LOOK, shown
from exporter.architectures.safety_checker import NAME as SAFETY_CHECKER
from exporter.parity.arithmetic import Tensors
from exporter.parity.clips import other_clips, other_lengths
from exporter.parity.painting import Painted

if TYPE_CHECKING:
    import numpy as np

    from exporter.architectures.base import Component
    from exporter.artifact import TensorRecord

MAX_TEXT_CASES = 4


@dataclass(frozen=True)
class Inputs:
    """One case before anything ran: `kind` and `label` as in `schema.Case`."""

    id: str
    kind: str
    label: str
    tensors: Tensors

    def digest(self) -> str:
        """sha256 over names, dtypes, shapes and bytes."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def described(self) -> dict[str, str]:
        return {n: f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for n, t in self.tensors.items()}


def captured(component: Component, painted: Painted, samples: int) -> list[Inputs]:
    """Cases of one component from the reference run.

    Denoising calls are sampled evenly over the trajectory, first and last step included, in every
    group of prompts. The VAE encoder is not part of text-to-image: it gets the painted pictures too; so does
    a safety checker, which never takes part in what is painted here.
    """
    calls = painted.calls.get(component.name, [])
    if component.name == "vae_encoder" and not calls:
        return [
            Inputs(
                f"picture{g + 1}", "captured", f"picture {g + 1}", {"sample": image.clamp(-1, 1).contiguous()}
            )
            for g, image in enumerate(painted.images)
        ]
    if component.name == SAFETY_CHECKER:
        looks = [shown(component.checkpoint, image) for image in painted.images]
        cases = []
        for g, (image, values) in enumerate(zip(painted.images, looks, strict=True)):
            case = Inputs(f"picture{g + 1}", "captured", f"picture {g + 1}", {LOOK: values})
            cases += _situations(component, case, image.shape[-2], image.shape[-1])
        return cases
    is_text = component.name.startswith("text_encoder")
    if not is_text:
        groups = sorted({call.order[0] for call in calls})
        chosen = []
        for group in groups:
            trajectory = [call for call in calls if call.order[0] == group]
            chosen += [trajectory[i] for i in spread(len(trajectory), samples)]
        calls = chosen
    seen: dict[str, Inputs] = {}
    for number, call in enumerate(calls):
        label = call.label
        if runs_each_step(component.folder) and "timestep" in call.inputs:
            label = f"{label} (t={float(call.inputs['timestep'].reshape(-1)[0]):g})"
        if is_text:
            label = f"{label}, text {sum(c.order == call.order for c in calls[: number + 1])}"
        case = Inputs(f"captured{number + 1}", "captured", label, call.inputs)
        seen.setdefault(case.digest(), case)  # the empty prompt is encoded once per group
    cases = list(seen.values())
    return cases[:MAX_TEXT_CASES] if is_text else cases


def spread(count: int, samples: int) -> list[int]:
    """`samples` indices evenly over `range(count)`, ends included, without repeats."""
    if samples >= count:
        return list(range(count))
    if samples == 1:
        return [count // 2]
    return sorted({round(i * (count - 1) / (samples - 1)) for i in range(samples)})


def untraced(component: Component, cases: Sequence[Inputs], inputs: Sequence[TensorRecord]) -> list[Inputs]:
    """Shapes and values the export did not trace, wherever the artifact claims to be dynamic.

    One kind is changed at a time, so that the case's name says what was baked in: another batch,
    another aspect, an odd sequence, a fractional timestep. Values are captured ones, tiled or cut.

    Args:
        inputs: As the artifact declares them; a dim that is a number there is not varied.
    """
    if not cases:
        return []
    symbols = {d for record in inputs for d in record.dims if isinstance(d, str)}
    first = cases[len(cases) // 2]
    now = _symbol_sizes(component, first)
    result = []
    wanted = _by_rules(component, now, symbols)
    ruled = bool(wanted)
    if "batch" in symbols and not ruled:
        batch = now.get("batch", 1)
        wanted += [("batch", f"batch {n} instead of {batch}", {"batch": n}) for n in (1, 3) if n != batch]
    wanted += _aspects(component, now, symbols) if not ruled else []
    if "sequence" in symbols and "sequence" in now and not ruled:
        odd = now["sequence"] * 2 // 3 // 2 * 2 + 1
        wanted.append(("sequence", f"{odd} tokens instead of {now['sequence']}", {"sequence": odd}))
    wanted += other_lengths(component, now, symbols)
    for number, (kind, label, sizes) in enumerate(wanted):
        tensors = _resized(component, first, sizes)
        result.append(Inputs(f"{kind}{number + 1}", kind, label, tensors))
    if "video_tokens" in symbols:
        for kind, label, tensors in other_clips(first.tensors):
            result.append(Inputs(f"{kind}{len(result) + 1}", kind, label, tensors))
    declared = {record.name: record.dtype for record in inputs}
    if declared.get("timestep", "").startswith("float"):  # an integer one claims whole steps only
        fractional = dict(first.tensors)
        fractional["timestep"] = torch.floor(fractional["timestep"].float()) + 0.5
        label = f"fractional timestep {float(fractional['timestep'].reshape(-1)[0]):g}"
        result.append(Inputs("timestep", "timestep", label, fractional))
    return result


def _symbol_sizes(component: Component, case: Inputs) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for spec in component.inputs:
        for dim, size in zip(spec.dims, case.tensors[spec.name].shape, strict=True):
            if isinstance(dim, str):
                sizes[dim] = size
    return sizes


def _aspects(
    component: Component, now: dict[str, int], symbols: set[str]
) -> list[tuple[str, str, dict[str, int]]]:
    grid = {"latent_height", "latent_width"} <= set(now)
    if "image_tokens" in now and "image_tokens" in symbols and not grid:  # a row, whatever its rectangle
        fewer = _scaled(now["image_tokens"], 3, 4, 1)
        label = f"{fewer} patches instead of {now['image_tokens']}"
        return [("aspect", label, {"image_tokens": fewer})]
    pairs = (("latent_height", "latent_width", 1), ("height", "width", component.native.factor))
    for high, wide, factor in pairs:
        if high in now and wide in now and {high, wide} & symbols:
            multiple = factor * component.multiple
            height = _scaled(now[high], 3, 4, multiple)
            width = _scaled(now[wide], 5, 4, multiple)
            sizes = {}
            if high in symbols:
                sizes[high] = height
            if wide in symbols:
                sizes[wide] = width
            if "image_tokens" in symbols:  # as many as this rectangle has
                sizes["image_tokens"] = math.prod(side // PACKED for side in (height, width))
            changed = f"{sizes.get(high, now[high])}×{sizes.get(wide, now[wide])}"
            label = f"{changed} instead of {now[high]}×{now[wide]}"
            return [("aspect", label, sizes)]
    return []


def _scaled(size: int, numerator: int, denominator: int, multiple: int) -> int:
    """`size` scaled, as a multiple of `multiple` that differs from `size`."""
    result = max(1, round(size * numerator / denominator / multiple)) * multiple
    if result == size:
        result += multiple if numerator > denominator or size <= multiple else -multiple
    return result


def _by_rules(
    component: Component, now: dict[str, int], symbols: set[str]
) -> list[tuple[str, str, dict[str, int]]]:
    """Changes for a component with dims that follow rules of their own (`height_over_16`): whatever moves
    with a knob moves by its rule. Empty where all dims have plain names."""
    ruled = {symbol for symbol in symbols if is_rule(symbol)}
    if not ruled:
        return []
    base = replace(component.native, batch=now.get("batch", component.rows))
    step = base.factor * component.multiple
    odd = base.sequence * 2 // 3 // 2 * 2 + 1
    changes = {
        "batch": replace(base, batch=3 * base.batch),
        "aspect": replace(
            base, height=_scaled(base.height, 3, 4, step), width=_scaled(base.width, 5, 4, step)
        ),
        "sequence": replace(base, sequence=odd),
    }
    result = []
    for kind, size in changes.items():
        knobs = {"height", "width"} if kind == "aspect" else {kind}
        moved = {s: size.resolve(s) for s in symbols if set(knobs_of(s)) & knobs}
        if moved:
            told = ", ".join(f"{symbol} {value}" for symbol, value in sorted(moved.items()))
            result.append((kind, f"{told} instead of the native size", moved))
    return result


def _resized(component: Component, case: Inputs, sizes: dict[str, int]) -> Tensors:
    result = {}
    for spec in component.inputs:
        tensor = case.tensors[spec.name]
        for axis, dim in enumerate(spec.dims):
            wanted = _size_in(dim, sizes, component.native.factor) if isinstance(dim, str) else None
            if wanted is not None:
                index = torch.arange(wanted) % tensor.shape[axis]
                tensor = tensor.index_select(axis, index)
        result[spec.name] = tensor.contiguous()
    return result


def _size_in(dim: str, sizes: dict[str, int], factor: int) -> int | None:
    """The new size of a dim: its own, or that which follows from what it is a share or a multiple of."""
    base, share = origin(dim)
    if base in sizes:
        return -(-sizes[base] // share)
    latent = sizes.get(f"latent_{dim}")
    return None if latent is None else latent * factor


def convert_inputs(case: Inputs, declared: Sequence[TensorRecord]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The case's arrays in the dtypes an artifact declares, and what that changed, in words.

    Raises:
        ValueError: The artifact asks for a name the case lacks, or its dtype cannot hold the values
            (a fractional timestep in an integer).
    """
    import numpy as np

    arrays: dict[str, np.ndarray] = {}
    notes = []
    names = {record.name for record in declared}
    missing = sorted(set(case.tensors) - names)
    if missing:
        raise ValueError(f"the artifact has no input {missing[0]!r}")
    for record in declared:
        if record.name not in case.tensors:
            raise ValueError(f"the artifact wants an input {record.name!r} that the component does not have")
        array = case.tensors[record.name].contiguous().numpy()
        wanted = np.dtype(record.dtype)
        if len(record.dims) == 1 and array.ndim == 0:
            array = array.reshape(1)  # clients that know no scalars
            notes.append(f"{record.name}: scalar → [1]")
        if array.dtype != wanted:
            cast = array.astype(wanted)
            if wanted.kind in "iu" and not np.array_equal(cast.astype(np.float64), array.astype(np.float64)):
                raise ValueError(f"{record.name} is {record.dtype} and cannot hold {array.reshape(-1)[0]:g}")
            notes.append(f"{record.name}: {array.dtype} → {record.dtype}")
            array = cast
        arrays[record.name] = np.ascontiguousarray(array).reshape(array.shape)
    return arrays, notes


def synthetic(component: Component, count: int = 3) -> list[Inputs]:
    """Random inputs of plausible range, for pipelines that cannot be run for a capture."""
    native, cases = component.native, []
    for n in range(count):
        tensors = component.example_inputs(native, n)
        case = Inputs(f"random{n + 1}", "random", f"random input {n + 1}", tensors)
        cases += _situations(component, case, native.height, native.width)
    return cases


def _situations(component: Component, case: Inputs, height: int, width: int) -> list[Inputs]:
    """What a component makes of a case to be judged on; the case where it makes nothing of it."""
    if component.situations is None:
        return [case]
    made = component.situations(component, dict(case.tensors), height, width)
    return [
        replace(case, id=f"{case.id}.{n + 1}", label=f"{case.label}, {label}", tensors=tensors)
        for n, (label, tensors) in enumerate(made)
    ]


def cases_of(component: Component, painted: Painted | None, samples: int) -> list[Inputs]:
    """Captured cases; synthetic ones where nothing was painted, or no step of the run calls the component."""
    return (captured(component, painted, samples) if painted else []) or synthetic(component)
