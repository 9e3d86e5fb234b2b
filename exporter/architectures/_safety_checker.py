"""The library's safety checker up to its scores. Needs PyTorch at import."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Scores(nn.Module):
    """`clip_input` → `special_scores`, `concept_scores`: cosine of the picture and each concept, less the
    concept's threshold."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner: Any = inner

    def forward(self, clip_input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = self.inner.vision_model(clip_input)[1]
        seen = nn.functional.normalize(self.inner.visual_projection(seen))
        special = seen @ nn.functional.normalize(self.inner.special_care_embeds).t()
        concepts = seen @ nn.functional.normalize(self.inner.concept_embeds).t()
        return (
            special - self.inner.special_care_embeds_weights,
            concepts - self.inner.concept_embeds_weights,
        )
