"""Half precision for weights and arithmetic."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from exporter.techniques.base import Technique, Undo, modules, originals


class Precision(Technique):
    """Attributes:
    dtype: Of weights and arithmetic.
    """

    name: ClassVar[str] = "precision"
    does: ClassVar[str] = "Weights and arithmetic in half precision."
    source: ClassVar[str] = "https://huggingface.co/docs/diffusers/optimization/fp16"
    effect: ClassVar = "rounding"
    how_much: ClassVar[str] = "10 bits of mantissa in float16 (and no value above 65504), 7 in bfloat16."
    stage: ClassVar[int] = 0

    dtype: Literal["float16", "bfloat16", "float32"] = "bfloat16"

    def apply(self, pipeline: Any) -> Undo:
        import torch

        undo = originals(modules(pipeline))
        pipeline.to(getattr(torch, self.dtype))
        return undo
