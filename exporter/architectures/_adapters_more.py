"""As `_adapters`: the library's transformers whose inputs have names of their own."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def by_name(inner: nn.Module, names: Sequence[str]) -> nn.Module:
    """A transformer of the library that takes tensors under these names and gives one, `out_hidden_states`.

    Tracers read the signature: so each set of names has a class.

    Args:
        names: Of the library's own `forward`, in the order of the component's inputs.
    """
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in ("self", *names)])

    def forward(*args: torch.Tensor, **kwargs: torch.Tensor) -> tuple[torch.Tensor]:
        given: dict[str, Any] = dict(signature.bind(*args, **kwargs).arguments)
        output = given.pop("self").inner(**given, return_dict=False)
        return (output[0],)

    forward.__signature__ = signature  # type: ignore[attr-defined]
    made: nn.Module = type("ByName", (_Around,), {"forward": forward})(inner)
    return made


class _Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class HunyuanTransformer(_Around):
    """HunyuanDiT → `out_hidden_states`; `image_rotary_emb_0` and `_1` are cosines and sines, `[patch, head]`.

    `timestep` is taken in the dtype of the latents, as the library's pipeline gives it: it decides in which
    one the conditions are computed. Up to 1.1 there are `image_meta_size` and `style` besides.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embedding_mask: torch.Tensor,
        encoder_hidden_states_t5: torch.Tensor,
        text_embedding_mask_t5: torch.Tensor,
        image_rotary_emb_0: torch.Tensor,
        image_rotary_emb_1: torch.Tensor,
        image_meta_size: torch.Tensor | None = None,
        style: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor]:
        output = self.inner(
            hidden_states=hidden_states,
            timestep=timestep.to(hidden_states.dtype),
            encoder_hidden_states=encoder_hidden_states,
            text_embedding_mask=text_embedding_mask,
            encoder_hidden_states_t5=encoder_hidden_states_t5,
            text_embedding_mask_t5=text_embedding_mask_t5,
            image_meta_size=image_meta_size,
            style=style,
            image_rotary_emb=(image_rotary_emb_0, image_rotary_emb_1),
            return_dict=False,
        )
        return (output[0],)
