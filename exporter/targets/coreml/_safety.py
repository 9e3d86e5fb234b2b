"""The safety checker that blackens by itself. Needs PyTorch at import."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from exporter.architectures.safety_checker import STRICTER


class Filtered(nn.Module):
    """`clip_input`, `images`, `adjustment` → `filtered_images`, `has_nsfw_concepts`, `concept_scores`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner: Any = inner

    def forward(
        self, clip_input: torch.Tensor, images: torch.Tensor, adjustment: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        seen = _unit(self.inner.visual_projection(self.inner.vision_model(clip_input)[1]))
        # times ones that the converter cannot know: else it would store the embeddings at length 1, rounded
        # to float16 once more than the checkpoint's own
        ones = seen[:1] * 0 + 1
        special = (
            seen @ _unit(ones * self.inner.special_care_embeds).t() - self.inner.special_care_embeds_weights
        )
        concepts = seen @ _unit(ones * self.inner.concept_embeds).t() - self.inner.concept_embeds_weights
        strict = _any_above(special + adjustment).to(concepts.dtype)
        concepts = concepts + STRICTER * strict
        flag = _any_above(concepts).to(concepts.dtype)[:, :, None, None]
        return images * (1 - flag), flag, concepts


def _unit(rows: torch.Tensor) -> torch.Tensor:
    """Rows at length 1, by plain operations: the interpreter knows no operation for a length."""
    return rows / (rows * rows).sum(dim=1, keepdim=True).sqrt()


def _any_above(scores: torch.Tensor) -> torch.Tensor:
    """`[batch, 1]`: whether the largest score of a row is above 0."""
    return scores.amax(dim=1, keepdim=True) > 0
