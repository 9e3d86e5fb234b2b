"""Token merging (ToMe) for self-attention."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from exporter.techniques.base import GRAPHS, PYTORCH, Technique, Undo


class TokenMerging(Technique):
    """Attributes:
    ratio: Share of the tokens that is merged away.
    max_downsample: Deepest level of the UNet where that is done: 1, 2, 4 or 8.
    """

    name: ClassVar[str] = "token-merging"
    does: ClassVar[str] = "Merges similar tokens before self-attention and splits them again behind it."
    source: ClassVar[str] = (
        "Bolya and Hoffman 2023, Token Merging for Fast Stable Diffusion (arXiv:2303.17604)"
    )
    denoisers: ClassVar[frozenset[str]] = frozenset({"unet"})
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusion", "LatentConsistency")
    packages: ClassVar[tuple[str, ...]] = ("tomesd",)
    baked_packages: ClassVar[tuple[str, ...]] = ("tomesd",)
    targets: ClassVar[frozenset[str]] = PYTORCH | GRAPHS
    effect: ClassVar = "lossy"
    how_much: ClassVar[str] = "Grows with the ratio; fine detail goes first. Pays above 512×512 only."
    stage: ClassVar[int] = 2

    ratio: float = Field(default=0.5, gt=0, le=0.75)
    max_downsample: int = 1

    def apply(self, pipeline: Any) -> Undo:
        import tomesd

        tomesd.apply_patch(pipeline, ratio=self.ratio, max_downsample=self.max_downsample, use_rand=False)

        def undo() -> None:
            tomesd.remove_patch(pipeline)

        return undo
