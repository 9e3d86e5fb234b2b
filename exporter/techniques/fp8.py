"""Float8 linear layers."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from exporter.techniques._torchao import quantise
from exporter.techniques.base import Technique, Undo


class Float8(Technique):
    """Attributes:
    smallest: Layers with fewer inputs or outputs stay as they are.
    """

    name: ClassVar[str] = "fp8"
    does: ClassVar[str] = "Linear layers in float8 (e4m3), weights and activations, scaled row by row."
    source: ClassVar[str] = "https://github.com/pytorch/ao (Float8DynamicActivationFloat8WeightConfig)"
    packages: ClassVar[tuple[str, ...]] = ("torchao",)
    device: ClassVar = "cuda"
    effect: ClassVar = "lossy"
    how_much: ClassVar[str] = (
        "3 bits of mantissa; needs a GPU of compute capability 8.9 or later, and bfloat16."
    )
    stage: ClassVar[int] = 4
    excludes: ClassVar[frozenset[str]] = frozenset({"int8", "trace", "layerwise-casting"})

    smallest: int = Field(default=64, ge=1)

    def apply(self, pipeline: Any) -> Undo:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow

        return quantise(
            pipeline, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()), self.smallest
        )
