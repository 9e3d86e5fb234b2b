"""TaylorSeer."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from exporter.techniques._caches import CACHES, TransformerCache
from exporter.techniques.base import denoiser


class TaylorSeer(TransformerCache):
    """Attributes:
    interval: A whole step every `interval`; the others are extrapolated.
    order: Of the Taylor series.
    first: So many steps at the beginning are always whole.
    """

    name: ClassVar[str] = "taylor-seer"
    does: ClassVar[str] = "Extrapolates the blocks' outputs between whole steps by a Taylor series."
    source: ClassVar[str] = "Liu et al. 2025, From Reusable to Forecasting: TaylorSeers (arXiv:2503.06923)"
    how_much: ClassVar[str] = "Grows with the interval, falls with the order."
    excludes: ClassVar[frozenset[str]] = CACHES - {"taylor-seer"} | {"trace"}

    interval: int = Field(default=3, ge=2)
    order: int = Field(default=1, ge=0, le=4)
    first: int = Field(default=3, ge=1)

    def config(self, pipeline: Any) -> Any:
        from diffusers import TaylorSeerCacheConfig

        return TaylorSeerCacheConfig(
            cache_interval=self.interval,
            max_order=self.order,
            disable_cache_before_step=self.first,
            taylor_factors_dtype=denoiser(pipeline).dtype,  # type: ignore[arg-type]
        )
