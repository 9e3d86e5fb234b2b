"""Faults as changes of a PyTorch module, in place.

The same change is planted into the module that the exporter captures (a fault of the exporter's
patch) and into the float64 reference (what the fault truly costs). Every function takes the adapted
module (`.inner` is the library's own) and a module path as the library names it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional
from torch import nn

Patch = Callable[[nn.Module, str], None]


def at(module: nn.Module, path: str) -> Any:
    """The library's module at a path; the adapter itself for the empty path."""
    return module.get_submodule("inner").get_submodule(path) if path else module


def around(owner: nn.Module, wrapper: Callable[..., Any]) -> None:
    """Put `wrapper(original, *args, **kwargs)` in place of a module's forward."""
    original = owner.forward

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    owner.forward = forward


def swapping(owner: nn.Module, name: str, replacement: Callable[..., Any]) -> None:
    """While the module runs, `torch.nn.functional.<name>` is `replacement(original, …)`."""

    def wrapper(original_forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        original = getattr(functional, name)

        @functools.wraps(original)  # torch.export asks functions for their name
        def replaced(*given: Any, **named: Any) -> Any:
            # Under a mode, torch looks a function up by name again: that must not be this one.
            setattr(functional, name, original)
            try:
                return replacement(original, *given, **named)
            finally:
                setattr(functional, name, replaced)

        setattr(functional, name, replaced)
        try:
            return original_forward(*args, **kwargs)
        finally:
            setattr(functional, name, original)

    around(owner, wrapper)


def eps(factor: float) -> Patch:
    def patch(module: nn.Module, path: str) -> None:
        at(module, path).eps *= factor

    return patch


def tanh_gelu(module: nn.Module, path: str) -> None:
    at(module, path).gelu = lambda x: functional.gelu(x, approximate="tanh")


def halves_swapped(module: nn.Module, path: str) -> None:
    """GEGLU gates with the half that it should pass on."""
    gate = at(module, path)

    def forward(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        gated, passed = gate.proj(hidden).chunk(2, dim=-1)
        return passed * gate.gelu(gated)

    gate.forward = forward


def attention_scale(factor: float | None) -> Patch:
    """Scores multiplied by `factor` more than they should be; None leaves the scale out."""

    def patch(module: nn.Module, path: str) -> None:
        def replacement(original: Callable[..., Any], query: Any, *args: Any, **kwargs: Any) -> Any:
            right = kwargs.pop("scale", None) or query.shape[-1] ** -0.5
            return original(query, *args, **kwargs, scale=1.0 if factor is None else right * factor)

        swapping(at(module, path), "scaled_dot_product_attention", replacement)

    return patch


def softmax_axis(module: nn.Module, path: str) -> None:
    """Softmax over the queries instead of over the keys."""

    def replacement(
        original: Callable[..., Any], query: Any, key: Any, value: Any, *args: Any, **kwargs: Any
    ) -> Any:
        scores = torch.matmul(query, key.transpose(-1, -2)) * query.shape[-1] ** -0.5
        return torch.matmul(torch.softmax(scores, dim=-2), value)

    swapping(at(module, path), "scaled_dot_product_attention", replacement)


def no_causal_mask(module: nn.Module, path: str) -> None:
    def wrapper(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return original(*args, **(kwargs | {"causal_attention_mask": None, "attention_mask": None}))

    around(at(module, path), wrapper)


def mask_off_by_one(module: nn.Module, path: str) -> None:
    """Every token sees one token too many."""

    def wrapper(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        mask = kwargs["causal_attention_mask"]
        if mask is None:  # the library leaves it to the attention's `is_causal`
            hidden = args[0] if args else kwargs["inputs_embeds"]
            mask = torch.full((1, 1, *[hidden.shape[1]] * 2), float("-inf"), dtype=hidden.dtype).triu(1)
        wider = torch.cat([mask[..., 1:], mask[..., -1:]], dim=-1)
        wider = torch.minimum(torch.zeros_like(wider), wider)
        return original(*args, **(kwargs | {"causal_attention_mask": wider}))

    around(at(module, path), wrapper)


def pooled_at_the_end(module: nn.Module, path: str) -> None:
    """The pooled output is the last token's, not the first end-of-text token's."""

    def wrapper(original: Callable[..., Any], input_ids: torch.Tensor) -> Any:
        hidden, _ = original(input_ids)
        return hidden, hidden[:, -1]

    around(module, wrapper)


def flip_sin_to_cos(module: nn.Module, path: str) -> None:
    owner = at(module, path)
    owner.flip_sin_to_cos = not owner.flip_sin_to_cos


def frequency_shift(module: nn.Module, path: str) -> None:
    at(module, path).downscale_freq_shift = 1 - at(module, path).downscale_freq_shift


def bilinear(module: nn.Module, path: str) -> None:
    def replacement(original: Callable[..., Any], x: Any, **kwargs: Any) -> Any:
        return original(x, **(kwargs | {"mode": "bilinear"}))

    swapping(at(module, path), "interpolate", replacement)


def padded_on_the_other_side(module: nn.Module, path: str) -> None:
    """The VAE's downsampler pads left and top instead of right and bottom."""

    def replacement(original: Callable[..., Any], x: Any, pad: Any, **kwargs: Any) -> Any:
        return original(x, (pad[1], pad[0], pad[3], pad[2]), **kwargs)

    swapping(at(module, path), "pad", replacement)


def relu(module: nn.Module, path: str) -> None:
    at(module, path).nonlinearity = nn.ReLU()


def no_skip(module: nn.Module, path: str) -> None:
    """A residual block returns its branch without the input added."""

    def wrapper(original: Callable[..., Any], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return original(x, *args, **kwargs) - x

    around(at(module, path), wrapper)


def whole_timestep(module: nn.Module, path: str) -> None:
    """The timestep loses its fraction."""
    _on_timestep(module, torch.floor)


def coarse_timestep(module: nn.Module, path: str) -> None:
    """The timestep in steps of four, which is what bfloat16 has between 512 and 1024."""
    _on_timestep(module, lambda t: torch.round(t / 4) * 4)


def _on_timestep(module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    def wrapper(original: Callable[..., Any], sample: Any, timestep: Any, encoder_hidden_states: Any) -> Any:
        return original(sample, change(timestep), encoder_hidden_states)

    around(module, wrapper)


def first_text_for_all(module: nn.Module, path: str) -> None:
    """Every row of the batch is given the text of the first."""

    def wrapper(original: Callable[..., Any], sample: Any, timestep: Any, encoder_hidden_states: Any) -> Any:
        return original(sample, timestep, encoder_hidden_states[:1].expand_as(encoder_hidden_states))

    around(module, wrapper)


# Faults that are planted in a file; here is only what they are in PyTorch.


def rows_shifted(module: nn.Module, path: str) -> None:
    """A convolution whose padding has moved from the last row to the first."""

    def wrapper(original: Callable[..., Any], x: torch.Tensor) -> Any:
        return original(functional.pad(x, (0, 0, -1, 1)))

    around(at(module, path), wrapper)


def all_through_float16(module: nn.Module, path: str) -> None:
    for weight in module.parameters():
        if sum(size > 1 for size in weight.shape) > 1:
            weight.data = weight.data.to(torch.float16).to(weight.dtype)


def output_through_float16(module: nn.Module, path: str) -> None:
    def wrapper(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # numpy, because the reference's float64 mode would undo a rounding by torch.
        halves = [o.numpy().astype("float16").astype("float64") for o in original(*args, **kwargs)]
        return tuple(torch.from_numpy(half) for half in halves)

    around(module, wrapper)


# Faults of a config, which says the same to every module of a kind.


def heads(factor: int) -> Patch:
    """Every attention splits into more heads than it was trained with."""

    def patch(module: nn.Module, path: str) -> None:
        for owner in module.modules():
            if type(owner).__name__ == "Attention":
                owner.heads *= factor

    return patch


def half_the_groups(module: nn.Module, path: str) -> None:
    for owner in module.modules():
        if isinstance(owner, nn.GroupNorm):
            owner.num_groups //= 2


def exact_gelu(module: nn.Module, path: str) -> None:
    for owner in module.modules():
        if type(owner).__name__ == "QuickGELUActivation":
            owner.forward = functional.gelu


def query_for_key(module: nn.Module, path: str) -> None:
    query, key = at(module, path), at(module, path.removesuffix("to_q") + "to_k")
    query.weight.data, key.weight.data = key.weight.data, query.weight.data
