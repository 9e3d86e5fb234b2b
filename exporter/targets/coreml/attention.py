"""How attention is written into a Core ML graph.

`original` leaves diffusers' attention to coremltools: scores of all heads in one product (from iOS 18
on one operator). The split forms are those of Apple's "Deploying Transformers on the Apple Neural
Engine" (<https://machinelearning.apple.com/research/neural-engine-transformers>): values lie as
(batch, channels, 1, tokens), linear layers are 1×1 convolutions, and every head is computed by itself,
so that nothing is reshaped on the Neural Engine. `split_einsum_v2` also cuts the queries into pieces of
`CHUNK`, which bounds the size of the scores; the last piece takes what is left, so every length is served.

The processors replace diffusers' own only while a graph is captured; parity's reference is never patched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from exporter.errors import UnsupportedError

if TYPE_CHECKING:
    import torch
    from torch import nn

Attention = Literal["original", "split_einsum", "split_einsum_v2"]
CHUNK = 512
"""Queries at a time in `split_einsum_v2`, as in apple/ml-stable-diffusion."""
MASKED = -1e4
"""Added to a masked score. exp(-1e4) is 0 in every precision, and float16 holds it; the usual
-3.4e38 becomes -inf there, and a row that is masked out whole becomes NaN."""


def split_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, scale: float, chunk: int | None
) -> torch.Tensor:
    """Attention with every head by itself.

    Args:
        query: (batch, channels, 1, tokens).
        key / value: (batch, channels, 1, key tokens).
        scale: Of the scores.
        chunk: Queries at a time; None takes all at once.

    Returns:
        (batch, channels, 1, tokens).
    """
    import torch

    size = query.shape[1] // heads
    turned = key.transpose(1, 3)  # (batch, key tokens, 1, channels)
    outputs = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        outputs.append(
            _pieces(query[:, part], turned[..., part], value[:, part], scale, chunk or query.shape[3])
        )
    return torch.cat(outputs, dim=1)


def _pieces(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, chunk: int
) -> torch.Tensor:
    import torch

    pieces = []
    for first in range(0, query.shape[3], chunk):
        some = query[..., first : first + chunk]
        scores = torch.einsum("bchq,bkhc->bkhq", some, key) * scale
        pieces.append(torch.einsum("bkhq,bchk->bchq", scores.softmax(dim=1), value))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=3)


class SplitProcessor:
    """A diffusers attention processor in the layout of the Neural Engine.

    Args:
        chunk: Queries at a time, or None.
    """

    def __init__(self, chunk: int | None) -> None:
        self.chunk = chunk

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **ignored: Any,
    ) -> torch.Tensor:
        refuse_unknown(attn, attention_mask)
        hidden = to_channels(hidden_states)
        other = hidden if encoder_hidden_states is None else to_channels(encoder_hidden_states)
        mixed = split_attention(
            attn.to_q(hidden), attn.to_k(other), attn.to_v(other), attn.heads, attn.scale, self.chunk
        )
        return attn.to_out[0](mixed).squeeze(2).transpose(1, 2)


def to_channels(tokens: torch.Tensor) -> torch.Tensor:
    """(batch, tokens, channels) → (batch, channels, 1, tokens)."""
    return tokens.transpose(1, 2).unsqueeze(2)


def refuse_unknown(attn: Any, mask: torch.Tensor | None) -> None:
    """
    Raises:
        UnsupportedError: The attention does something that the split form would leave out.
    """
    extras = [
        name
        for name in ("spatial_norm", "group_norm", "norm_q", "norm_k", "norm_cross", "added_kv_proj_dim")
        if getattr(attn, name, None) is not None
    ]
    if mask is not None:
        extras.append("a mask")
    if getattr(attn, "residual_connection", False) or getattr(attn, "rescale_output_factor", 1.0) != 1.0:
        extras.append("a residual of its own")
    if extras:
        raise UnsupportedError(
            f"The split form of attention does not serve an attention with {extras[0]}.",
            hint="Convert with --attention original.",
        )


def split_layers(module: nn.Module, kind: Attention) -> list[str]:
    """Put the split form into every attention of a module.

    Returns:
        Paths (below `module`) of the linear layers that became 1×1 convolutions: their outputs lie as
        (batch, channels, 1, tokens).
    """
    from diffusers.models.attention_processor import Attention as DiffusersAttention

    laid_out = []
    for path, layer in module.named_modules():
        if not isinstance(layer, DiffusersAttention):
            continue
        layer.set_processor(SplitProcessor(CHUNK if kind == "split_einsum_v2" else None))  # type: ignore[arg-type]
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            linear: Any = layer.get_submodule(name)
            linear.forward = as_convolution(linear)
            laid_out.append(f"{path}.{name}")
    return laid_out


def as_convolution(linear: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The forward of a linear layer over (batch, channels, 1, tokens)."""
    import torch.nn.functional as functional

    def forward(x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x, linear.weight[:, :, None, None], linear.bias)

    return forward


@contextmanager
def finite_masks() -> Iterator[None]:
    """Inside, attention masks are additive and no lower than `MASKED`."""
    import torch
    import torch.nn.functional as functional

    original = functional.scaled_dot_product_attention

    def attention(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, **options: Any,
    ) -> torch.Tensor:  # fmt: skip
        if is_causal:
            attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, MASKED)
            else:
                attn_mask = attn_mask.clamp(min=MASKED)
        return original(query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, **options)

    functional.scaled_dot_product_attention = attention  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original
