"""Masks of language models in plain operators.

transformers makes causal masks by mapping a function over four indices (`vmap`), and computes rotary angles
inside a region that switches autocast off; neither is an operator of any runtime. The same comparisons are
captured without them. The library is replaced only while a graph is captured; the reference that parity
runs is never patched.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

CAUSAL, SLIDING = "create_causal_mask", "create_sliding_window_causal_mask"


@contextmanager
def plain_masks() -> Iterator[None]:
    """Inside, the causal masks of transformers' models, and of those with a window, are comparisons."""
    import torch

    modules = [m for name, m in list(sys.modules.items()) if name.startswith("transformers.models.")]
    originals = [(m, name, vars(m)[name]) for m in modules for name in (CAUSAL, SLIDING) if name in vars(m)]
    autocast = torch.autocast
    try:
        for module, name, original in originals:
            setattr(module, name, _plain(original, windowed=name == SLIDING))
        if originals:  # nothing here is captured under autocast: a region without it is any region
            torch.autocast = lambda *args, **options: nullcontext()  # type: ignore[assignment,misc]
        yield
    finally:
        torch.autocast = autocast  # type: ignore[misc]
        for module, name, original in originals:
            setattr(module, name, original)


def _plain(original: Any, *, windowed: bool) -> Any:
    @functools.wraps(original)
    def mask(
        config: Any,
        input_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache_position: torch.Tensor,
        past_key_values: Any,
        position_ids: Any = None,
        **others: Any,
    ) -> Any:
        """`[batch, 1, tokens, tokens]` of truths: a token sees itself and those before it, within the window,
        but no padding."""
        kept = attention_mask is not None and attention_mask.ndim == 2 and past_key_values is None
        if others or not kept or config._attn_implementation != "sdpa":
            return original(
                config, input_embeds, attention_mask, cache_position, past_key_values, position_ids, **others
            )
        import torch

        assert attention_mask is not None
        token, seen = cache_position.unsqueeze(1), cache_position.unsqueeze(0)
        allowed = seen <= token
        if windowed:
            allowed = torch.logical_and(allowed, seen > token - config.sliding_window)
        return torch.logical_and(allowed[None, None], attention_mask.bool()[:, None, None, :])

    return mask
