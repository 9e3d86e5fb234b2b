"""The largest magnitudes on the way through a program."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from exporter.targets.coreml.interpreter import shapes

LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class Largest:
    """The largest magnitude of one value over all runs, before rounding; NaN once it held one."""

    value: str
    operation: str
    dtype: str
    peak: float

    @property
    def fits(self) -> bool:
        """Whether the declared dtype holds it."""
        return self.dtype != "float16" or self.peak <= LARGEST_HALF


@dataclass
class Peaks:
    """The largest magnitude of every floating value that is computed, in order of execution.

    Given to `Model.predict`, as often as wanted. Operations that only move numbers, and weights that are
    unpacked, are left out.
    """

    values: dict[str, Largest] = field(default_factory=dict)

    def note(self, name: str, kind: str, dtype: str, tensor: torch.Tensor) -> None:
        if not tensor.is_floating_point() or not tensor.numel():
            return
        if kind in shapes.MOVES or kind.startswith("constexpr"):
            return
        low, high = torch.aminmax(tensor)
        peak = max(-low.item(), high.item())  # NaN in both or in none
        before = self.values.get(name)
        if before is None or (before.peak == before.peak and not (peak <= before.peak)):
            self.values[name] = Largest(name, kind, dtype, peak)

    def overflowing(self) -> list[Largest]:
        """Everything that its declared float16 cannot hold, in order; NaN counts."""
        return [found for found in self.values.values() if not found.fits]
