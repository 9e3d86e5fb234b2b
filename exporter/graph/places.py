"""Places of a clip's tokens, computed from the tokens' numbers.

LTX-Video makes ranges as long as the latents have frames, rows and columns, and joins them: three numbers
that are inputs would be lengths of tensors, and no tracer can tell that their product is the number of
tokens. Token `i` is in column `i mod width` of row `i / width` of its frame: integers, which every runtime
computes alike. From there on it is the library's arithmetic, in its order. The library's function is
replaced only while a program is traced; the reference that parity runs is never patched.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MODULE = "diffusers.models.transformers.transformer_ltx"
CLASS = "LTXVideoRotaryPosEmbed"


@contextmanager
def places_by_number(*, fold: bool) -> Iterator[None]:
    """Inside, places of a clip's tokens are traced as arithmetic on their numbers.

    Args:
        fold: Frequencies, which depend on nothing, are constants: PyTorch's own float32 numbers. In a program
            that PyTorch runs they are computed, on the device it is loaded on.
    """
    module = sys.modules.get(MODULE)
    owner: Any = getattr(module, CLASS, None)
    if owner is None:
        yield
        return
    original = owner.forward

    def forward(
        self: Any, hidden_states: Any, num_frames: Any = None, height: Any = None, width: Any = None,
        rope_interpolation_scale: Any = None, video_coords: Any = None,
    ) -> Any:  # fmt: skip
        if video_coords is not None or rope_interpolation_scale is None:
            return original(
                self, hidden_states, num_frames, height, width, rope_interpolation_scale, video_coords
            )
        return _angles(self, hidden_states, height, width, rope_interpolation_scale, fold)

    owner.forward = forward
    try:
        yield
    finally:
        owner.forward = original


def _angles(module: Any, hidden_states: Any, height: Any, width: Any, scale: Any, fold: bool) -> Any:
    """Cosines and sines, float32 `[1, tokens, dim]`."""
    import torch

    number = torch.arange(hidden_states.shape[1], device=hidden_states.device)
    row = torch.div(number, width, rounding_mode="trunc")
    frame = torch.div(row, height, rounding_mode="trunc")
    places = (frame, row - frame * height, number - row * width)
    sizes = (
        (module.patch_size_t, module.base_num_frames),
        (module.patch_size, module.base_height),
        (module.patch_size, module.base_width),
    )
    grid = torch.stack(
        [
            place.to(torch.float32) * scale[axis] * patch / base
            for axis, (place, (patch, base)) in enumerate(zip(places, sizes, strict=True))
        ],
        dim=-1,
    )
    turns = grid.unsqueeze(0).unsqueeze(-1) * 2 - 1
    freqs = _frequencies(module, None if fold else hidden_states.device)
    angles = (freqs * turns).transpose(-1, -2).flatten(2)
    cosines, sines = (_twice(value) for value in (angles.cos(), angles.sin()))
    left = module.dim % 6
    if left:
        cosines = torch.cat([torch.ones_like(cosines[:, :, :left]), cosines], dim=-1)
        sines = torch.cat([torch.zeros_like(sines[:, :, :left]), sines], dim=-1)
    return cosines, sines


def _twice(values: Any) -> Any:
    """Each element and itself again: `repeat_interleave(2, -1)` in operators that every format has."""
    import torch

    return torch.stack([values, values], dim=-1).flatten(-2)


def _frequencies(module: Any, device: Any) -> Any:
    """As the library has them; constants made outside the trace where no device is given."""
    import torch
    from torch.utils._python_dispatch import _disable_current_modes

    def made(where: Any) -> Any:
        steps = torch.linspace(
            math.log(1.0, module.theta), math.log(module.theta, module.theta), module.dim // 6,
            device=where, dtype=torch.float32,
        )  # fmt: skip
        return module.theta**steps * math.pi / 2.0

    if device is not None:
        return made(device)
    with _disable_current_modes():
        return made("cpu")
