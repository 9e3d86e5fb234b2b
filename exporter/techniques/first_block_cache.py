"""First Block Cache."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from exporter.techniques._caches import enable
from exporter.techniques.base import Technique, Undo


class FirstBlockCache(Technique):
    """Attributes:
    threshold: Relative change of the first block's residual below which the others are not run.
    """

    name: ClassVar[str] = "first-block-cache"
    does: ClassVar[str] = "Skips a step's other blocks when the first one's output has hardly changed."
    source: ClassVar[str] = "https://huggingface.co/docs/diffusers/optimization/cache#first-block-cache"
    denoisers: ClassVar[frozenset[str]] = frozenset({"transformer"})
    effect: ClassVar = "lossy"
    how_much: ClassVar[str] = "Grows with the threshold; 0.05 to 0.1 is usual."
    stage: ClassVar[int] = 3
    excludes: ClassVar[frozenset[str]] = frozenset(
        {"attention-broadcast", "faster-cache", "taylor-seer", "trace"}
    )

    threshold: float = Field(default=0.08, gt=0, lt=1)

    def apply(self, pipeline: Any) -> Undo:
        from diffusers import FirstBlockCacheConfig

        return enable(pipeline, FirstBlockCacheConfig(threshold=self.threshold), self.name)
