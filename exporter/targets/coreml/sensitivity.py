"""Bits by measured sensitivity: what each weight's palette costs at the output, and who gets how many bits.

As apple/ml-stable-diffusion's `mixed_bit_compression_pre_analysis.py`: one weight at a time is palettised
with 1, 2, 4, 6 and 8 bits, the model is run, and the output is compared with the uncompressed one's. A recipe
then gives every weight the fewest bits that keep the output above a threshold; the threshold is the highest
whose recipe has no more than the wanted number of bits on average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from exporter.targets.coreml.compression import How, numbers_of
from exporter.targets.coreml.palettes import PALETTE_BITS, palettise

if TYPE_CHECKING:
    from exporter.architectures.base import Component
    from exporter.progress import Progress
    from exporter.targets.coreml.options import CoremlOptions

CASES = 2
"""Inputs the sensitivity is measured on: the component's examples of seeds 0, 1 …"""
Sensitivity = dict[str, dict[int, float]]
"""Constant → bits → SQNR of the outputs in dB."""


def mixture(
    component: Component,
    options: CoremlOptions,
    holds: Mapping[str, list[str]],
    average: float,
    progress: Progress,
) -> tuple[dict[str, How], dict[str, Any]]:
    """Bits for every weight, `average` of them at most by number of weights.

    Args:
        holds: Constant → the keys of the component's weights it holds.

    Returns:
        Constant → how to store it; and for the manifest: the SQNR that was measured for each choice.
    """
    found = measure(component, options, holds, progress)
    stored = component.reference_weights
    bits = recipe(found, numbers_of(component, holds), average)
    noted = {
        "sensitivity": {
            stored[key].name: {str(b): round(db, 2) for b, db in found[name].items()}
            for name, keys in sorted(holds.items())
            for key in keys
        }
    }
    return {name: How("palette", b) for name, b in bits.items()}, noted


def measure(
    component: Component, options: CoremlOptions, holds: Mapping[str, list[str]], progress: Progress
) -> Sensitivity:
    """The SQNR of the outputs in dB (the least of them) with one weight palettised, float32 in PyTorch."""
    from exporter.targets.coreml.export import export_size

    module = component.reference_module()
    parameters = dict(module.named_parameters())
    size = export_size(component, options)
    cases = [component.example_inputs(size, seed) for seed in range(CASES)]
    result: Sensitivity = {}
    with torch.no_grad():
        truths = [module(**inputs) for inputs in cases]
        progress.start(f"{component.name}: measuring sensitivity", len(holds))
        for number, (constant, keys) in enumerate(holds.items()):
            owners = [parameters[key] for key in keys if key in parameters]
            original = owners[0].data
            result[constant] = {}
            for bits in PALETTE_BITS:
                small = palettise(original.float().numpy(), bits, options.dtype)
                for owner in owners:
                    owner.data = torch.from_numpy(small.values())
                outputs = [module(**inputs) for inputs in cases]
                for owner in owners:
                    owner.data = original
                result[constant][bits] = min(
                    sqnr(a, b)
                    for out, truth in zip(outputs, truths, strict=True)
                    for a, b in zip(out, truth, strict=True)
                )
            progress.update(number + 1)
    progress.done()
    return result


def sqnr(output: torch.Tensor, truth: torch.Tensor) -> float:
    """Energy of the truth over that of the difference, in dB; NaN where a value is not finite."""
    signal = float(truth.double().square().sum())
    noise = float((output.double() - truth.double()).square().sum())
    if not (math.isfinite(signal) and math.isfinite(noise)):
        return math.nan
    return math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def recipe(found: Sensitivity, sizes: Mapping[str, int], average: float) -> dict[str, int]:
    """The fewest bits for every weight that keep the output above a threshold: the highest threshold whose
    average, by number of weights, is no more than wanted.

    A threshold that no number of bits reaches gives the most bits there are.
    """
    thresholds = sorted({db for by_bits in found.values() for db in by_bits.values() if math.isfinite(db)})
    total = sum(sizes[name] for name in found)

    def at(threshold: float) -> dict[str, int]:
        return {
            name: next((bits for bits in sorted(by_bits) if by_bits[bits] >= threshold), max(by_bits))
            for name, by_bits in found.items()
        }

    def mean(chosen: Mapping[str, int]) -> float:
        return sum(bits * sizes[name] for name, bits in chosen.items()) / max(total, 1)

    best = {name: min(by_bits) for name, by_bits in found.items()}
    for threshold in thresholds:
        chosen = at(threshold)
        if mean(chosen) > average:
            break
        best = chosen
    return _spend(best, found, sizes, average * total)


def _spend(
    best: Mapping[str, int], found: Sensitivity, sizes: Mapping[str, int], budget: float
) -> dict[str, int]:
    """Raise single weights while bits are left, the most sensitive first: the steps between thresholds are
    coarse where one weight is a large part of the model."""
    chosen = dict(best)
    spent = sum(bits * sizes[name] for name, bits in chosen.items())
    for name in sorted(found, key=lambda name: (found[name][chosen[name]], name)):
        higher = next((bits for bits in sorted(found[name]) if bits > chosen[name]), None)
        if higher is not None and spent + (higher - chosen[name]) * sizes[name] <= budget:
            spent += (higher - chosen[name]) * sizes[name]
            chosen[name] = higher
    return chosen
