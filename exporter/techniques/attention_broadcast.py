"""Pyramid Attention Broadcast."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from exporter.techniques._caches import CACHES, TransformerCache


class AttentionBroadcast(TransformerCache):
    """Attributes:
    interval: Self-attention is computed every `interval` steps while the timestep is in range.
    timesteps: That range, lowest and highest, of the scheduler's training timesteps.
    """

    name: ClassVar[str] = "attention-broadcast"
    does: ClassVar[str] = "Computes attention every few steps and keeps its output in between (PAB)."
    source: ClassVar[str] = (
        "Zhao et al. 2024, Real-Time Video Generation with Pyramid Attention Broadcast (arXiv:2408.12588)"
    )
    how_much: ClassVar[str] = "Grows with the interval and the range of timesteps."
    excludes: ClassVar[frozenset[str]] = CACHES - {"attention-broadcast"} | {"trace"}

    interval: int = Field(default=2, ge=2)
    timesteps: tuple[int, int] = (100, 800)

    def config(self, pipeline: Any) -> Any:
        from diffusers import PyramidAttentionBroadcastConfig

        return PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=self.interval,
            spatial_attention_timestep_skip_range=self.timesteps,
            spatial_attention_block_identifiers=("blocks", "transformer_blocks"),
            current_timestep_callback=lambda: pipeline.current_timestep,
        )
