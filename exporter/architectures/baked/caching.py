"""The modules of DeepCache's two graphs, and of the reference. Needs PyTorch at import."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from exporter.architectures._adapters import UNet


class KeepingUNet(UNet):
    """A `UNet` that also gives what one of its modules gave: → (`out_sample`, `cached`).

    Args:
        source: Path of that module.
    """

    def __init__(self, inner: nn.Module, source: str) -> None:
        super().__init__(inner)
        self.found: list[torch.Tensor] = []
        inner.get_submodule(source).register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.found[:] = [output[0] if isinstance(output, tuple) else output]

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
        return (out, self.found.pop())


class ReplacingUNet(UNet):
    """The library's whole UNet in which one module's output is given instead: → `out_sample`.

    Args:
        source: Path of that module.
    """

    def __init__(self, inner: nn.Module, source: str) -> None:
        super().__init__(inner)
        self.given: list[torch.Tensor] = []
        inner.get_submodule(source).register_forward_hook(self._replace)

    def _replace(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        return (self.given[0], *output[1:]) if isinstance(output, tuple) else self.given[0]

    def forward(  # type: ignore[override]
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        text_embeds: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
        *,
        cached: torch.Tensor,
    ) -> tuple[torch.Tensor]:
        if encoder_hidden_states is None:  # read by the deep part only
            unet: Any = self.inner
            width = unet.config.cross_attention_dim
            encoder_hidden_states = sample.new_zeros(sample.shape[0], 1, width)
        self.given[:] = [cached]
        return super().forward(sample, timestep, encoder_hidden_states, text_embeds, time_ids, timestep_cond)


class ShallowUNet(UNet):
    """The outermost layers of a UNet around what the others gave: → `out_sample`.

    Args:
        inner: As `deep_cache.shallow_part` leaves it.
        depth: Layers that are run on the way down, after the first convolution; one more on the way up.
    """

    def __init__(self, inner: nn.Module, depth: int) -> None:
        super().__init__(inner)
        self.depth = depth

    def forward(  # type: ignore[override]
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        text_embeds: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
        *,
        cached: torch.Tensor,
    ) -> tuple[torch.Tensor]:
        unet: Any = self.inner
        if unet.config.center_input_sample:
            sample = 2 * sample - 1.0
        time = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep), timestep_cond)
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        more = unet.get_aug_embed(
            emb=time, encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added
        )
        time = time if more is None else time + more
        if unet.time_embed_act is not None:
            time = unet.time_embed_act(time)
        hidden = unet.conv_in(sample)
        skips = [hidden]
        for number in range(self.depth):
            hidden = self._layer(unet.down_blocks[0], number, hidden, time, encoder_hidden_states)
            skips.append(hidden)
        last = unet.up_blocks[len(unet.up_blocks) - 1]
        hidden = cached
        for number in range(len(last.resnets) - 1 - self.depth, len(last.resnets)):
            joined = torch.cat([hidden, skips.pop()], dim=1)
            hidden = self._layer(last, number, joined, time, encoder_hidden_states)
        if unet.conv_norm_out is not None:
            hidden = unet.conv_act(unet.conv_norm_out(hidden))
        return (unet.conv_out(hidden),)

    @staticmethod
    def _layer(
        block: Any, number: int, hidden: torch.Tensor, time: torch.Tensor, text: torch.Tensor | None
    ) -> torch.Tensor:
        hidden = block.resnets[number](hidden, time)
        if getattr(block, "attentions", None) is None:
            return hidden
        attended = block.attentions[number](hidden, encoder_hidden_states=text, return_dict=False)
        found: torch.Tensor = attended[0]
        return found
