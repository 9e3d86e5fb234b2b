"""The library's IP-Adapter inside its UNet, and the encoder beside it. Needs PyTorch at import."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class ImageEncoder(nn.Module):
    """`pixel_values` → `image_embeds`, or what the last but one layer gives (`states`)."""

    def __init__(self, inner: nn.Module, states: bool = False) -> None:
        super().__init__()
        self.inner = inner
        self.states = states

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor]:
        output = self.inner(pixel_values=pixel_values, output_hidden_states=self.states)
        return (output.hidden_states[-2] if self.states else output.image_embeds,)


class Amount:
    """Stands where the library keeps an IP-Adapter's scale, which is a number there: 1 until a graph's input
    takes its place. The library multiplies with it, and leaves the picture out where it equals 0."""

    def __init__(self) -> None:
        self.value: float | torch.Tensor = 1.0

    def __mul__(self, other: torch.Tensor) -> torch.Tensor:
        return self.value * other

    def __eq__(self, other: object) -> bool:
        return not isinstance(self.value, torch.Tensor) and self.value == other

    def __hash__(self) -> int:
        return id(self)


def give(unet: Any, settings: Mapping[str, Any], width: int) -> Any:
    """Give a UNet an IP-Adapter, as the library's `load_ip_adapter` does it; weights are whatever the
    surrounding context gives.

    Args:
        settings: As `architectures.ip_adapter.KEY` describes them.
        width: Channels of the text.
    """
    from diffusers.models import embeddings
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    amount = Amount()
    processors = dict(unet.attn_processors)
    for name in processors:
        if not name.endswith("attn1.processor"):
            channels = unet.get_submodule(name.removesuffix(".processor")).to_v.out_features
            made = IPAdapterAttnProcessor2_0(channels, width, num_tokens=[settings["tokens"]])
            made.scale = [amount]
            processors[name] = made
    unet.set_attn_processor(processors)
    projection: Any
    if settings["kind"] == "plain":
        projection = embeddings.ImageProjection(settings["embed"], width, settings["tokens"])
    elif settings["kind"] == "full":
        projection = embeddings.IPAdapterFullImageProjection(settings["embed"], width)
    else:
        projection = embeddings.IPAdapterPlusImageProjection(
            embed_dims=settings["embed"], output_dims=width, hidden_dims=settings["hidden"],
            heads=settings["heads"], num_queries=settings["tokens"],
        )  # fmt: skip
    unet.encoder_hid_proj = embeddings.MultiIPAdapterImageProjection([projection])
    unet.config.encoder_hid_dim_type = (
        "ip_image_proj"  # where the library puts it: its constructor knows none
    )
    unet.ip_adapter_amount = amount
    return unet


@contextmanager
def counting(unet: Any, value: torch.Tensor) -> Iterator[None]:
    """Inside, an IP-Adapter counts as much as an input says."""
    amount: Amount = unet.ip_adapter_amount
    amount.value = value
    try:
        yield
    finally:
        amount.value = 1.0
