"""The VAE tile by tile."""

from __future__ import annotations

from typing import Any, ClassVar

from exporter.techniques.base import GRAPHS, PYTORCH, Technique, Undo


class VaeTiling(Technique):
    """Peak memory of decoding is that of one tile. Pictures no larger than a tile are decoded whole."""

    name: ClassVar[str] = "vae-tiling"
    does: ClassVar[str] = "Decodes large pictures tile by tile and blends the seams."
    source: ClassVar[str] = "https://huggingface.co/docs/diffusers/optimization/memory#vae-tiling"
    effect: ClassVar = "lossy"
    how_much: ClassVar[str] = (
        "Nothing up to one tile; beyond, group normalisation sees a tile instead of the picture: "
        "slight changes of tone between tiles."
    )
    targets: ClassVar[frozenset[str]] = PYTORCH | GRAPHS | {"torchscript", "pt2", "stablehlo"}
    stage: ClassVar[int] = 6

    def apply(self, pipeline: Any) -> Undo:
        pipeline.vae.enable_tiling()
        undo: Undo = pipeline.vae.disable_tiling
        return undo
