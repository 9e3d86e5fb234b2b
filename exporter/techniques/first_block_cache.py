"""First Block Cache."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from exporter.techniques._caches import CACHES, TransformerCache


class FirstBlockCache(TransformerCache):
    """Attributes:
    threshold: Relative change of the first block's residual below which the others are not run.
    """

    name: ClassVar[str] = "first-block-cache"
    does: ClassVar[str] = "Skips a step's other blocks when the first one's output has hardly changed."
    source: ClassVar[str] = "https://huggingface.co/docs/diffusers/optimization/cache#first-block-cache"
    how_much: ClassVar[str] = "Grows with the threshold; 0.05 to 0.1 is usual."
    excludes: ClassVar[frozenset[str]] = CACHES - {"first-block-cache"} | {"trace"}

    threshold: float = Field(default=0.08, gt=0, lt=1)

    def config(self, pipeline: Any) -> Any:
        from diffusers import FirstBlockCacheConfig

        return FirstBlockCacheConfig(threshold=self.threshold)
