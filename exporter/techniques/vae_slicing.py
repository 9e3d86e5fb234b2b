"""The VAE one picture at a time."""

from __future__ import annotations

from typing import Any, ClassVar

from exporter.techniques.base import GRAPHS, PYTORCH, Technique, Undo


class VaeSlicing(Technique):
    """Peak memory of decoding a batch is that of one picture."""

    name: ClassVar[str] = "vae-slicing"
    does: ClassVar[str] = "Decodes a batch of pictures one after the other."
    source: ClassVar[str] = "https://huggingface.co/docs/diffusers/optimization/memory#vae-slicing"
    effect: ClassVar = "exact"
    how_much: ClassVar[str] = "The same arithmetic; kernels may sum in another order at another batch."
    targets: ClassVar[frozenset[str]] = PYTORCH | GRAPHS | {"torchscript", "pt2", "stablehlo"}
    stage: ClassVar[int] = 6

    def apply(self, pipeline: Any) -> Undo:
        pipeline.vae.enable_slicing()
        undo: Undo = pipeline.vae.disable_slicing
        return undo
