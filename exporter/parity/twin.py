"""Backends for `painting.paint`: the reference, its twin one rounding away, and the artifact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch

from exporter.parity.arithmetic import UNIT_ROUNDOFF, Reference, Tensors
from exporter.parity.cases import Inputs, convert_inputs
from exporter.parity.painting import Backend, OpenBackend

if TYPE_CHECKING:
    from exporter.architectures.base import Component
    from exporter.targets.base import Runner


def reference_backend(components: Mapping[str, Component]) -> OpenBackend:
    """The unpatched float32 modules."""

    @contextmanager
    def open_backend(name: str) -> Iterator[Backend]:
        with Reference(components[name]) as reference:
            yield reference

    return open_backend


def twin_backend(
    components: Mapping[str, Component], precisions: Mapping[str, tuple[str, str]], seed: int
) -> OpenBackend:
    """PyTorch at the artifact's precision, every call's inputs moved by one rounding error.

    Args:
        precisions: (weights, arithmetic) by component; float32 for those not named.
    """

    @contextmanager
    def open_backend(name: str) -> Iterator[Backend]:
        weights, arithmetic = precisions.get(name, ("float32", "float32"))
        generator = torch.Generator().manual_seed(seed)
        with Reference(components[name], weights=weights, arithmetic=arithmetic) as reference:
            yield lambda inputs: reference(one_rounding_away(inputs, arithmetic, generator))

    return open_backend


def one_rounding_away(inputs: Tensors, arithmetic: str, generator: torch.Generator) -> Tensors:
    """Every floating element moved to a neighbour of that precision, up or down at random."""
    unit = UNIT_ROUNDOFF[arithmetic]
    moved = {}
    for name, value in inputs.items():
        if value.is_floating_point() and value.dim() > 0:
            sign = torch.randint(0, 2, value.shape, generator=generator) * 2 - 1
            value = (value.double() * (1 + sign * 2 * unit)).to(value.dtype)
        moved[name] = value
    return moved


def artifact_backend(
    components: Mapping[str, Component],
    open_runner: Mapping[str, Callable[[], AbstractContextManager[Runner]]],
) -> OpenBackend:
    """The exported components; those the artifact lacks are the float32 reference."""
    fallback = reference_backend(components)

    @contextmanager
    def open_backend(name: str) -> Iterator[Backend]:
        if name not in open_runner:
            with fallback(name) as backend:
                yield backend
            return
        with open_runner[name]() as runner:
            yield lambda inputs: _run(runner, inputs)

    return open_backend


def _run(runner: Runner, inputs: Tensors) -> Tensors:
    arrays, _ = convert_inputs(Inputs("", "captured", "", inputs), runner.inputs)
    return {name: torch.from_numpy(array.copy()) for name, array in runner.run(arrays).items()}
