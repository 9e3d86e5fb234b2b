"""Dynamic int8 quantisation of linear layers."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from exporter.techniques._torchao import quantise
from exporter.techniques.base import Technique, Undo


class DynamicInt8(Technique):
    """Attributes:
    smallest: Layers with fewer inputs or outputs stay as they are: they would not get faster.
    """

    name: ClassVar[str] = "int8"
    does: ClassVar[str] = "Linear layers with int8 weights and activations, whose scale is found at run time."
    source: ClassVar[str] = "https://github.com/pytorch/ao (Int8DynamicActivationInt8WeightConfig)"
    packages: ClassVar[tuple[str, ...]] = ("torchao",)
    effect: ClassVar = "lossy"
    how_much: ClassVar[str] = (
        "8 bits for each row of weights and each token; without compilation it is slower."
    )
    stage: ClassVar[int] = 4
    excludes: ClassVar[frozenset[str]] = frozenset({"fp8", "trace", "layerwise-casting"})

    smallest: int = Field(default=64, ge=1)

    def apply(self, pipeline: Any) -> Undo:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig

        return quantise(pipeline, Int8DynamicActivationInt8WeightConfig(), self.smallest)
