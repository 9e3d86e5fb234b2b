"""TensorFloat-32 for float32 matrix products."""

from __future__ import annotations

from typing import Any, ClassVar

from exporter.techniques.base import Technique, Undo


class TensorFloat32(Technique):
    """Matrix products and convolutions of float32 tensors read 10 bits of mantissa."""

    name: ClassVar[str] = "tf32"
    does: ClassVar[str] = "Float32 matrix products and convolutions on TensorFloat-32 cores."
    source: ClassVar[str] = "https://huggingface.co/docs/diffusers/optimization/fp16#tensorfloat-32"
    device: ClassVar = "cuda"
    effect: ClassVar = "rounding"
    how_much: ClassVar[str] = (
        "10 bits of mantissa in products, sums in float32; nothing under half precision."
    )
    stage: ClassVar[int] = 0

    def apply(self, pipeline: Any) -> Undo:
        import torch

        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

        def undo() -> None:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before

        return undo
