"""The modules of T-GATE's two graphs. Needs PyTorch at import."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from exporter.architectures._adapters import UNet
from exporter.architectures.baked.t_gate import Place


class GateableUNet(UNet):
    """A `UNet` that also gives what its cross-attentions gave: → (`out_sample`, `cross_attention`)."""

    def __init__(self, inner: nn.Module, places: Sequence[Place]) -> None:
        super().__init__(inner)
        self.places = tuple(places)
        self.found: dict[str, torch.Tensor] = {}
        for path, _, _ in self.places:
            inner.get_submodule(path).register_forward_hook(partial(self._keep, path))

    def _keep(self, path: str, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        self.found[path] = output

    def forward(  # type: ignore[override]
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        (out,) = super().forward(
            sample, timestep, encoder_hidden_states, text_embeds, time_ids, timestep_cond
        )
        height, width = sample.shape[2:]
        kept = [spread(self.found.pop(path), height, width, factor) for path, _, factor in self.places]
        return (out, torch.cat(kept, dim=1))


class GatedUNet(UNet):
    """A `UNet` whose cross-attentions give what is given: (`sample`, …, `cross_attention`) → `out_sample`."""

    def __init__(self, inner: nn.Module, places: Sequence[Place]) -> None:
        super().__init__(inner)
        self.places = tuple(places)
        self.given: dict[str, torch.Tensor] = {}
        for path, _, _ in self.places:
            inner.get_submodule(path).forward = self._gives(path)  # type: ignore[method-assign]

    def _gives(self, path: str) -> Callable[..., torch.Tensor]:
        def forward(hidden_states: torch.Tensor, **others: Any) -> torch.Tensor:
            return self.given[path]

        return forward

    def forward(  # type: ignore[override]
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        text_embeds: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
        *,
        cross_attention: torch.Tensor,
    ) -> tuple[torch.Tensor]:
        widths = [channels // factor**2 for _, channels, factor in self.places]
        parts = cross_attention.split_with_sizes(widths, dim=1)
        for (path, _, factor), part in zip(self.places, parts, strict=True):
            self.given[path] = gathered(part, factor)
        none: Any = None
        return super().forward(sample, timestep, none, text_embeds, time_ids, timestep_cond)


def spread(tokens: torch.Tensor, height: Any, width: Any, factor: int) -> torch.Tensor:
    """`[batch, tokens, channels]` of a level as `[batch, channels / factor², height, width]`, the latents'
    sides."""
    batch, _, channels = tokens.shape
    split = (batch, height // factor, width // factor, channels // factor**2, factor, factor)
    picture = tokens.reshape(split).permute(0, 3, 1, 4, 2, 5)
    return picture.reshape(batch, channels // factor**2, height, width)


def gathered(picture: torch.Tensor, factor: int) -> torch.Tensor:
    """The tokens of a level again: what `spread` was given."""
    batch, channels, height, width = picture.shape
    split = (batch, channels, height // factor, factor, width // factor, factor)
    tokens = picture.reshape(split).permute(0, 2, 4, 1, 3, 5)
    return tokens.reshape(batch, (height // factor) * (width // factor), channels * factor**2)
