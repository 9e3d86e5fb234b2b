"""DeepCache: the deep part of the UNet once every few steps."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from exporter.techniques.base import GRAPHS, PYTORCH, Technique, Undo


class DeepCache(Technique):
    """Attributes:
    interval: The whole UNet runs every `interval` steps, the shallow part in between.
    branch: Skip connection at which the shallow part turns back; 0 is the outermost.
    """

    name: ClassVar[str] = "deep-cache"
    does: ClassVar[str] = (
        "Runs the deep part of the UNet once every few steps and keeps its output in between."
    )
    source: ClassVar[str] = (
        "Ma et al. 2024, DeepCache: Accelerating Diffusion Models for Free (arXiv:2312.00858)"
    )
    denoisers: ClassVar[frozenset[str]] = frozenset({"unet"})
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusion",)
    packages: ClassVar[tuple[str, ...]] = ("DeepCache",)
    targets: ClassVar[frozenset[str]] = PYTORCH | GRAPHS
    effect: ClassVar = "lossy"
    how_much: ClassVar[str] = "Grows with the interval; composition stays, detail moves."
    stage: ClassVar[int] = 3
    excludes: ClassVar[frozenset[str]] = frozenset({"t-gate", "trace"})

    interval: int = Field(default=3, ge=1)
    branch: int = Field(default=0, ge=0)

    def apply(self, pipeline: Any) -> Undo:
        from DeepCache import DeepCacheSDHelper

        helper = DeepCacheSDHelper(pipe=pipeline)
        helper.set_params(cache_interval=self.interval, cache_branch_id=self.branch)
        helper.enable()
        return helper.disable
