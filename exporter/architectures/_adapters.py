"""The library's modules with plain tensors in and out, as components name them.

Apart from the rest, because they need PyTorch at import: what only copies weights never loads it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from exporter.architectures._ip_adapter import counting
from exporter.architectures.ip_adapter import EMBEDS, SCALE


class TextEncoder(nn.Module):
    """`input_ids` → the library's own outputs: (`last_hidden_state`, `pooler_output`), or with a
    projection (`text_embeds`, `last_hidden_state`); then every hidden state where they are wanted."""

    def __init__(self, inner: nn.Module, hidden_states: bool = False) -> None:
        super().__init__()
        self.inner = inner
        self.hidden_states = hidden_states

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.inner(input_ids=input_ids, output_hidden_states=self.hidden_states, return_dict=False)
        return (output[0], output[1], *(output[2] if self.hidden_states else ()))


class T5Encoder(nn.Module):
    """(`input_ids`, `attention_mask` where the family has one) → `last_hidden_state`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor]:
        output = self.inner(input_ids=input_ids, attention_mask=attention_mask, return_dict=False)
        return (output[0],)


class DecoderAsEncoder(nn.Module):
    """(`input_ids`, `attention_mask`) → `last_hidden_state` of a language model, which keeps no cache."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor]:
        output = self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return (output.last_hidden_state,)


class UNet(nn.Module):
    """(`sample`, `timestep`, `encoder_hidden_states`) → `out_sample`.

    Further inputs where the config asks for them: `text_embeds` and `time_ids` (SDXL), `timestep_cond`
    (the guidance scale's embedding, of models distilled to need no second pass).
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor]:
        added = None if text_embeds is None else {"text_embeds": text_embeds, "time_ids": time_ids}
        output = self.inner(
            sample,
            timestep,
            encoder_hidden_states,
            timestep_cond=timestep_cond,
            added_cond_kwargs=added,
            return_dict=False,
        )
        return (output[0],)


class Transformer(nn.Module):
    """(`hidden_states`, `encoder_hidden_states`, `pooled_projections`, `timestep`) → `out_hidden_states`.

    Further inputs of FLUX: `img_ids` and `txt_ids` (where tokens are), `guidance` (a scale for each row).
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pooled_projections: torch.Tensor,
        timestep: torch.Tensor,
        img_ids: torch.Tensor | None = None,
        txt_ids: torch.Tensor | None = None,
        guidance: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor]:
        further = {"img_ids": img_ids, "txt_ids": txt_ids, "guidance": guidance}
        output = self.inner(
            hidden_states=hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            pooled_projections=pooled_projections,
            timestep=timestep,
            return_dict=False,
            **{name: value for name, value in further.items() if value is not None},
        )
        return (output[0],)


class MaskedTransformer(nn.Module):
    """(`hidden_states`, `encoder_hidden_states`, `encoder_attention_mask`, `timestep`) → `out_hidden_states`.

    Further inputs of PixArt-α: `resolution` and `aspect_ratio`.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
        timestep: torch.Tensor,
        resolution: torch.Tensor | None = None,
        aspect_ratio: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor]:
        sized = {"added_cond_kwargs": {"resolution": resolution, "aspect_ratio": aspect_ratio}}
        output = self.inner(
            hidden_states=hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            timestep=timestep,
            return_dict=False,
            **({} if resolution is None else sized),
        )
        return (output[0],)


def controlled_unet(inner: nn.Module, names: Sequence[str]) -> nn.Module:
    """A UNet that also takes a ControlNet's residuals or a picture: (`sample`, `timestep`,
    `encoder_hidden_states`, then `names`) → `out_sample`.

    How many there are depends on the model, and tracers read the signature: so each model has a class.

    Args:
        names: Further inputs in order; those of a list of diffusers' end in their number there.
    """
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    every = ("self", "sample", "timestep", "encoder_hidden_states", *names)
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in every])
    lists = {name.rpartition("_")[0] for name in names if name.endswith("_0")}
    added = {"text_embeds", "time_ids", EMBEDS} & set(names)

    def forward(*args: torch.Tensor, **kwargs: torch.Tensor) -> tuple[torch.Tensor]:
        given: Any = signature.bind(*args, **kwargs).arguments
        others: dict[str, Any] = {name: given[name] for name in names}
        for each in lists:
            others[each] = [others.pop(name) for name in names if name.rpartition("_")[0] == each]
        if EMBEDS in added:  # a list, of each IP-Adapter's picture
            others[EMBEDS] = [others[EMBEDS]]
        if added:
            others["added_cond_kwargs"] = {name: others.pop(name) for name in added}
        first = (given["sample"], given["timestep"], given["encoder_hidden_states"])
        inner, scale = given["self"].inner, others.pop(SCALE, None)
        with nullcontext() if scale is None else counting(inner, scale.to(given["sample"].dtype)):
            output = inner(*first, **others, return_dict=False)
        return (output[0],)

    forward.__signature__ = signature  # type: ignore[attr-defined]
    made: nn.Module = type("ControlledUNet", (UNet,), {"forward": forward})(inner)
    return made


class ControlNet(nn.Module):
    """(`sample`, `timestep`, `encoder_hidden_states`, `controlnet_cond` in [0, 1], `conditioning_scale`, and
    of SDXL `text_embeds` and `time_ids`) → the residuals of the way down, then that of the middle."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        controlnet_cond: torch.Tensor,
        conditioning_scale: torch.Tensor,
        text_embeds: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        added = None if text_embeds is None else {"text_embeds": text_embeds, "time_ids": time_ids}
        down, middle = self.inner(
            sample,
            timestep,
            encoder_hidden_states,
            controlnet_cond=controlnet_cond,
            conditioning_scale=conditioning_scale.to(sample.dtype),
            added_cond_kwargs=added,
            return_dict=False,
        )
        return (*down, middle)


class T2I(nn.Module):
    """`control_image` in [0, 1] → the features of a T2I-Adapter, from the largest to the smallest."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, control_image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.inner(control_image))


class VideoTransformer(nn.Module):
    """LTX-Video: latents as a row of tokens, and the numbers that say where each token is → `out_sample`.

    `num_frames`, `height` and `width` count latent cells, int64 of rank 0; `rope_interpolation_scale` is
    seconds per latent frame, pixels per row and per column.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
        num_frames: torch.Tensor,
        height: torch.Tensor,
        width: torch.Tensor,
        rope_interpolation_scale: torch.Tensor,
    ) -> tuple[torch.Tensor]:
        output = self.inner(
            hidden_states=hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            timestep=timestep,
            encoder_attention_mask=encoder_attention_mask,
            num_frames=num_frames,
            height=height,
            width=width,
            rope_interpolation_scale=rope_interpolation_scale,
            return_dict=False,
        )
        return (output[0],)


class VideoVaeDecoder(nn.Module):
    """`latent_sample`, and `timestep` where the decoder removes the last of the noise → clip in [-1, 1]."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(
        self, latent_sample: torch.Tensor, timestep: torch.Tensor | None = None
    ) -> tuple[torch.Tensor]:
        return (self.inner.decode(latent_sample, timestep, return_dict=False)[0],)


class VaeDecoder(nn.Module):
    """`latent_sample` (already divided by the scaling factor) → picture in [-1, 1]."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, latent_sample: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.inner.decode(latent_sample, return_dict=False)[0],)


class VaeEncoder(nn.Module):
    """Picture in [-1, 1] → the moments (mean and log-variance); sampling stays outside the graph."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.inner._encode(sample),)


class TinyVaeEncoder(nn.Module):
    """Picture in [-1, 1] → the latents: `AutoencoderTiny` and `AutoencoderDC` have no distribution."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.inner.encode(sample, return_dict=False)[0],)
