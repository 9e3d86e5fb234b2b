"""Convolutions in the channels-last layout."""

from __future__ import annotations

from typing import Any, ClassVar

from exporter.techniques.base import Technique, Undo, denoiser, originals


class ChannelsLast(Technique):
    """Kernels of the UNet and the VAE lie as NHWC, which tensor cores and oneDNN read without a copy."""

    name: ClassVar[str] = "channels-last"
    does: ClassVar[str] = "Convolutions of UNet and VAE in the channels-last (NHWC) layout."
    source: ClassVar[str] = "https://pytorch.org/tutorials/intermediate/memory_format_tutorial.html"
    denoisers: ClassVar[frozenset[str]] = frozenset({"unet"})
    effect: ClassVar = "rounding"
    how_much: ClassVar[str] = "The same arithmetic in another order of sums."
    stage: ClassVar[int] = 1

    def apply(self, pipeline: Any) -> Undo:
        import torch

        parts = [denoiser(pipeline), pipeline.vae]
        undo = originals(parts)
        for part in parts:
            part.to(memory_format=torch.channels_last)
        return undo
