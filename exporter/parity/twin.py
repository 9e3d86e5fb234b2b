"""Backends for `painting.paint`: the reference, its twin one rounding away, and the artifact."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch

from exporter.parity.arithmetic import UNIT_ROUNDOFF, Reference, Tensors
from exporter.parity.budget import layouts_of
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

    It computes in the layout that is not the reference's, where there are two: with the same kernels it
    would repeat the reference's own roundings layer by layer, which no other runtime does.

    Args:
        precisions: (weights, arithmetic) by component; float32 for those not named.
    """

    @contextmanager
    def open_backend(name: str) -> Iterator[Backend]:
        weights, arithmetic = precisions.get(name, ("float32", "float32"))
        generator = torch.Generator().manual_seed(seed)
        component = components[name]
        layout = layouts_of(component)[-1]
        with Reference(component, weights=weights, arithmetic=arithmetic, layout=layout) as reference:
            unit = max(UNIT_ROUNDOFF[weights], UNIT_ROUNDOFF[arithmetic])
            round_again(
                reference.module.get_submodule("inner"),
                component.checkpoint.rounded(component.folder),
                unit,
                generator,
            )
            exact = {spec.name for spec in component.inputs if spec.exact}
            yield lambda inputs: reference(one_rounding_away(inputs, arithmetic, generator, exact))

    return open_backend


def round_again(
    module: torch.nn.Module, layers: Collection[str], unit: float, generator: torch.Generator
) -> None:
    """Give the weights of some layers the error of one more rounding, drawn evenly from ±`unit`.

    A fused LoRA is a sum that had to be rounded to be stored; the reference keeps its terms apart. The
    error is drawn and not taken from the artifact, so a wrong fusion does not widen its own limit.

    What it can hide: nothing inside a component, for those limits know nothing of the twin, and a LoRA's
    scale that is off by 1 % or a layer left out is a FAIL there (`test_a_wrong_fusion_is_found`). Between
    components, where the picture is all there is to see by, as much as the twin's own error grows: measured
    0.94 to 1.18 times with a LoRA over every attention, within the scatter of the draws
    (`test_the_extra_rounding_widens_no_limit_by_much`). A fault of joining (another scale of latents, another
    scheduler, texts exchanged) is orders of magnitude above that.
    `unit` is the coarser of storage and arithmetic, because a base weight that is exact in either has no
    error of its own in the twin, while the fused one is rounded to it.
    """
    for path in sorted(layers):
        try:
            weight = module.get_parameter(f"{path}.weight")
        except AttributeError:
            continue  # the other half of an autoencoder
        drawn = torch.rand(weight.shape, generator=generator, dtype=torch.float64) * 2 - 1
        weight.data = (weight.data.double() * (1 + unit * drawn)).to(weight.dtype)


def one_rounding_away(
    inputs: Tensors, arithmetic: str, generator: torch.Generator, exact: Collection[str] = ()
) -> Tensors:
    """Every floating element moved to a neighbour of that precision, up or down at random.

    Args:
        exact: Inputs that no precision rounds, and that are not moved.
    """
    unit = UNIT_ROUNDOFF[arithmetic]
    moved = {}
    for name, value in inputs.items():
        if value.is_floating_point() and value.dim() > 0 and name not in exact:
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
