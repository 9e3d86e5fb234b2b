"""Activations in integers: the run that their ranges are from, and the ranges in a file held against it.

A range is the least and the largest value that entered a layer while the captured inputs were run, zero
included, and widened so that zero is one of its numbers. So it can be found again, by PyTorch and from the
checkpoint alone, however little a wrong one shows in an output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from exporter.parity.parts import ActivationCheck
from exporter.parity.reference import BUILTIN, paint_reference, plan_of, token_prompts

if TYPE_CHECKING:
    import torch

    from exporter.architectures import Component
    from exporter.checkpoints import Checkpoint
    from exporter.parity.cases import Inputs
    from exporter.parity.painting import Plan
    from exporter.targets.base import RoundedActivation

BUILTIN_CALIBRATION = (
    "a small blue square at the bottom on a yellow background",
    "a large white triangle at the right on a black background",
    "a small red cross in the center on a green background",
    "a large yellow ring at the top on a purple background",
)
GENERIC_CALIBRATION = (
    "a bowl of oranges on a wooden table, oil painting",
    "a city street at night in the rain, neon lights",
    "a portrait of an old man with a white beard",
    "a mountain lake in winter, wide angle",
)


def calibration_plan(
    checkpoint: Checkpoint,
    size: Sequence[int] | None,
    prompts: Sequence[str] | None,
    steps: int,
    seed: int,
) -> Plan:
    """What is painted to calibrate: other pictures than the ones that are judged by default.

    Args:
        size: `(pictures, height, width)` where shapes are baked; None is the native size.
    """
    builtin = checkpoint.source.startswith(BUILTIN)
    ours = BUILTIN_CALIBRATION if builtin else GENERIC_CALIBRATION
    chosen = list(prompts or (*ours, *token_prompts(checkpoint)))
    return plan_of(checkpoint, size, prompts=chosen, steps=steps, seed=seed)


def calibration_cases(
    checkpoint: Checkpoint,
    components: Sequence[Component],
    plan: Plan,
    samples: int,
    *,
    cache: Path | Literal["user"] | None = "user",
    tick: Callable[[str], None] = lambda text: None,
) -> dict[str, list[Inputs]]:
    """The inputs of each component in the float32 reference's run; none where it is never called."""
    from exporter.parity.cases import captured

    painted = paint_reference(checkpoint, plan, cache=cache, tick=tick)
    return {component.name: captured(component, painted, samples) for component in components}


def check_ranges(
    checkpoint: Checkpoint,
    component: Component,
    claimed: Mapping[str, Any],
    rounded: Sequence[RoundedActivation],
    *,
    cache: Path | Literal["user"] | None,
    tick: Callable[[str], None] = lambda text: None,
) -> tuple[list[ActivationCheck], list[str]]:
    """The ranges in a file against those that the run in its manifest gives.

    Args:
        component: With the checkpoint's weights.
        claimed: The manifest's word: the run, `inputs` (how many) and `ranges` (by weight).
        rounded: The file's.

    Returns:
        A check of each range, and faults that need no number.
    """
    names = {each.name for each in rounded}
    faults = []
    if names != set(claimed["ranges"]) or len(names) != len(rounded):
        odd = sorted(names ^ set(claimed["ranges"])) or sorted(names)
        faults.append(
            f"the manifest and the file disagree about whose inputs are rounded: {odd[0]} ({len(odd)} in all)"
        )
    size = (int(claimed["batch"]), int(claimed["height"]), int(claimed["width"]))
    plan = calibration_plan(
        checkpoint, size, list(claimed["prompts"]), int(claimed["steps"]), int(claimed["seed"])
    )
    found = calibration_cases(checkpoint, [component], plan, int(claimed["samples"]), cache=cache, tick=tick)[
        component.name
    ]
    if len(found) != claimed["inputs"]:
        faults.append(
            f"the manifest says calibrated on {claimed['inputs']} captured inputs, its run gives {len(found)}"
        )
    wanted = entering(component, found)
    return [_check(each, wanted.get(each.name)) for each in rounded], faults


def entering(component: Component, cases: Sequence[Inputs]) -> dict[str, tuple[float, float]]:
    """Least and largest value that enters each layer of the float32 reference, by the name of its weight."""
    from exporter.parity.arithmetic import Reference

    ranges: dict[str, tuple[float, float]] = {}

    def note(name: str, unused: object, given: tuple[torch.Tensor, ...]) -> None:
        low, high = (float(each) for each in given[0].aminmax())
        before = ranges.get(name, (math.inf, -math.inf))
        ranges[name] = (min(low, before[0]), max(high, before[1]))

    with Reference(component) as reference:
        handles = []
        for key, stored in component.weights.items():
            path, _, kind = key.rpartition(".")
            if kind == "weight" and len(stored.shape) >= 2:
                layer = reference.module.get_submodule(path)
                handles.append(layer.register_forward_pre_hook(partial(note, stored.name)))
        for case in cases:
            reference(case.tensors)
        for handle in handles:
            handle.remove()
    return ranges


def widened(low: float, high: float, levels: int) -> list[tuple[float, float]]:
    """A range that includes zero, with one end moved outwards until zero is one of its numbers.

    Which number that is hangs on a rounding, so that two answers may be right.
    """
    top, span = levels - 1, high - low
    if not span > 0:
        return []
    found = []
    for zero in {math.floor(-low / span * top), math.ceil(-low / span * top)}:
        if zero <= 0:
            found.append((0.0, high))
        elif zero >= top:
            found.append((low, 0.0))
        else:
            either = ((high * zero / (zero - top), high), (low, low * (zero - top) / zero))
            found.append(max(either, key=lambda ends: ends[1] - ends[0]))
    return found


def _check(found: RoundedActivation, measured: tuple[float, float] | None) -> ActivationCheck:
    low, high = (math.nan, math.nan) if measured is None else (min(measured[0], 0.0), max(measured[1], 0.0))
    best, wanted = math.nan, (low, high)
    for ends in widened(low, high, found.levels) if found.levels > 1 else ():
        step = (ends[1] - ends[0]) / (found.levels - 1)
        away = max(abs(found.low - ends[0]), abs(found.high - ends[1])) / step
        if not (away >= best):
            best, wanted = away, ends
    if math.isnan(found.low) or math.isnan(found.high):
        best = math.nan
    return ActivationCheck(
        name=found.name, low=found.low, high=found.high, levels=found.levels, wanted=list(wanted), steps=best
    )
