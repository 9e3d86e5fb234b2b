"""FasterCache."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from exporter.techniques._caches import CACHES, TransformerCache


class FasterCache(TransformerCache):
    """Attributes:
    interval: Attention is computed every `interval` steps and extrapolated in between.
    guidance_interval: The unguided half of the batch is computed every so many steps.
    guidance_distilled: The model has guidance baked in (FLUX.1 dev, schnell): there is no unguided half.
    """

    name: ClassVar[str] = "faster-cache"
    does: ClassVar[str] = "Extrapolates attention, and the unguided half of the batch, between steps."
    source: ClassVar[str] = (
        "Lv et al. 2024, FasterCache: Training-Free Video Diffusion Model Acceleration (arXiv:2410.19355)"
    )
    how_much: ClassVar[str] = "Grows with both intervals."
    excludes: ClassVar[frozenset[str]] = CACHES - {"faster-cache"} | {"trace"}

    interval: int = Field(default=2, ge=2)
    guidance_interval: int = Field(default=5, ge=2)
    guidance_distilled: bool = True

    def config(self, pipeline: Any) -> Any:
        from diffusers import FasterCacheConfig

        return FasterCacheConfig(
            spatial_attention_block_skip_range=self.interval,
            spatial_attention_timestep_skip_range=(-1, 681),
            spatial_attention_block_identifiers=("blocks", "transformer_blocks", "single_transformer_blocks"),
            unconditional_batch_skip_range=self.guidance_interval,
            attention_weight_callback=lambda _: 0.3,
            tensor_format="BCHW",
            is_guidance_distilled=self.guidance_distilled,
            current_timestep_callback=lambda: pipeline.current_timestep,
        )
