"""The fastest convolution that cuDNN has for each shape."""

from __future__ import annotations

from typing import Any, ClassVar

from exporter.techniques.base import Technique, Undo


class CudnnBenchmark(Technique):
    """At the first picture of a size every convolution is timed in all ways that cuDNN knows."""

    name: ClassVar[str] = "cudnn-benchmark"
    does: ClassVar[str] = "Times cuDNN's convolutions at the first picture and takes the fastest."
    source: ClassVar[str] = "https://docs.pytorch.org/tutorials/recipes/recipes/tuning_guide.html"
    denoisers: ClassVar[frozenset[str]] = frozenset({"unet"})
    device: ClassVar = "cuda"
    effect: ClassVar = "rounding"
    how_much: ClassVar[str] = "The same formula in another order of sums."
    stage: ClassVar[int] = 0

    def apply(self, pipeline: Any) -> Undo:
        import torch

        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True

        def undo() -> None:
            torch.backends.cudnn.benchmark = before

        return undo
