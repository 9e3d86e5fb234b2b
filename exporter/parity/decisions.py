"""Judging what follows from an artifact's decisions apart from how good they are.

Where a component decides by comparing numbers (`architectures.baked.deciding`), truth and noise floor are
computed with the artifact's decisions, so that neither its own luck nor PyTorch's counts: a flip in a floor
would be a limit under which a fault hides. The decisions have a limit of their own: in the truth, nothing
that was not taken may be better than what was taken by more than a comparison can be off by.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from exporter.architectures.baked.deciding import is_decision, likeness_of
from exporter.architectures.base import origin
from exporter.parity.arithmetic import UNIT_ROUNDOFF, Tensors
from exporter.parity.cases import Inputs
from exporter.parity.ports import Backend, OpenBackend
from exporter.parity.schema import DecisionMeasurement

if TYPE_CHECKING:
    import numpy as np

    from exporter.architectures.base import Component

NOT_SHOWN = "the file does not show which tokens it merges, without which nothing follows; convert it again"

Made = dict[str, list[Tensors]]
"""Decisions by component, one entry a call."""


def shapes_of(component: Component, case: Inputs) -> dict[str, tuple[int, ...]]:
    """Of the outputs, from the case's inputs."""
    sizes: dict[str, int] = {}
    for spec in component.inputs:
        for dim, size in zip(spec.dims, case.tensors[spec.name].shape, strict=True):
            if isinstance(dim, str):
                sizes[dim] = size
    return {
        spec.name: tuple(
            dim if isinstance(dim, int) else -(-sizes[origin(dim)[0]] // origin(dim)[1]) for dim in spec.dims
        )
        for spec in component.outputs
    }


def taken_from(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Take the decisions out of what a runner gave."""
    return {name: outputs.pop(name) for name in list(outputs) if is_decision(name)}


def told(case: Inputs, decisions: Mapping[str, np.ndarray]) -> Inputs:
    """The case with decisions among its inputs."""
    given = {name: torch.from_numpy(values).long() for name, values in decisions.items()}
    return replace(case, tensors={**case.tensors, **given})


def untold(case: Inputs) -> Inputs:
    """The case as an artifact takes it."""
    return replace(case, tensors={n: t for n, t in case.tensors.items() if not is_decision(n)})


def measured(
    component: Component, truth: Tensors, floors: Mapping[str, Tensors], arithmetic: str
) -> list[DecisionMeasurement]:
    """How good the decisions of a case are.

    Args:
        component: That is told (`Decisions.told`).
        truth / floors: Its outputs in float64, and at the artifact's precision by layout.
    """
    names = [spec.name for spec in component.outputs]
    paths = [name for name in names if name.startswith(likeness_of(""))]
    return [
        decision(
            path.removeprefix(likeness_of("")), truth[path], [f[path] for f in floors.values()], arithmetic
        )
        for path in paths
    ]


def decision(
    path: str, truth: torch.Tensor, floors: Sequence[torch.Tensor], arithmetic: str
) -> DecisionMeasurement:
    """One decision: what the truth says against it, and how much PyTorch itself is off there."""
    best, chosen, gone = truth.double().unbind(1)
    went = gone > 0.5
    count = int(best.numel())
    if not bool(torch.isfinite(truth).all()):
        return DecisionMeasurement(place=path, tokens=count, otherwise=count, regret=math.nan, noise=math.nan)
    noise = max((float((f.double() - truth)[:, :2].abs().max()) for f in floors if count), default=0.0)
    regret, otherwise = 0.0, 0
    for row in range(best.shape[0]):
        moved, stayed = best[row][went[row]], best[row][~went[row]]
        if not len(moved):
            continue
        short = moved - chosen[row][went[row]]  # of the one that it resembles most
        passed = stayed.max() - moved if len(stayed) else torch.zeros_like(moved)  # of one that did not go
        regret = max(regret, float(short.max()), float(passed.max()))
        otherwise += int(((short > 0) | (passed > 0)).sum())
    return DecisionMeasurement(
        place=path,
        tokens=count,
        otherwise=otherwise,
        regret=regret,
        noise=max(noise, UNIT_ROUNDOFF[arithmetic]),
    )


def heard(backends: OpenBackend, made: Made) -> OpenBackend:
    """The same backends; the decisions in what they give are kept."""

    @contextmanager
    def open_backend(name: str) -> Iterator[Backend]:
        with backends(name) as backend:

            def ask(inputs: Tensors) -> Tensors:
                outputs = backend(inputs)
                decisions = {path: value.long() for path, value in outputs.items() if is_decision(path)}
                if decisions:
                    made.setdefault(name, []).append(decisions)
                return outputs

            yield ask

    return open_backend


def repeated(backends: OpenBackend, made: Made) -> OpenBackend:
    """Backends of components that are told, in the order of their calls, what was decided before."""

    @contextmanager
    def open_backend(name: str) -> Iterator[Backend]:
        with backends(name) as backend:
            decisions = iter(made.get(name, ()))
            yield lambda inputs: backend({**inputs, **next(decisions, {})})

    return open_backend
