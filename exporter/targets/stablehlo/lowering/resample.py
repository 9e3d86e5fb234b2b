"""Pictures made larger and smaller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from exporter.targets.stablehlo.lowering.registry import as_dtype, lowers, wide


@lowers("aten.upsample_nearest2d.vec")
def upsample_nearest(x: Any, output_size: Sequence[Any] | None, scale_factors: Sequence[float] | None) -> Any:
    """(batch, channels, height, width). Whole factors repeat; others look up, in float32 as torch does."""
    for place in (0, 1):
        axis, size = place + 2, x.shape[place + 2]
        factor = None if scale_factors is None else scale_factors[place]
        wanted = output_size[place] if factor is None else _scaled(size, factor)  # type: ignore[index]
        times = _times(size, wanted)
        if times is not None:
            spread = jnp.broadcast_to(
                jnp.expand_dims(x, axis + 1), (*x.shape[: axis + 1], times, *x.shape[axis + 1 :])
            )
            x = jnp.reshape(spread, (*x.shape[:axis], size * times, *x.shape[axis + 1 :]))
            continue
        f32 = jnp.float32
        scale = (
            1 / as_dtype(factor, f32) if factor is not None else as_dtype(size, f32) / as_dtype(wanted, f32)
        )
        places = jnp.floor(lax.iota(f32, wanted) * scale).astype(jnp.int32)
        x = jnp.take(x, jnp.minimum(places, as_dtype(size, jnp.int32) - 1), axis=axis, mode="clip")
    return x


def _scaled(size: Any, factor: float) -> Any:
    if isinstance(size, int):
        return int(size * factor)
    if factor != int(factor):
        raise NotImplementedError(f"a symbolic size times {factor}")
    return size * int(factor)


def _times(size: Any, wanted: Any) -> int | None:
    """The whole number of times that a size is another, or None."""
    for times in range(1, 17):
        if size * times == wanted:
            return times
    return None


@lowers("aten.avg_pool2d.default")
def avg_pool(
    x: Any,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """(…, height, width)."""
    kernel, pads = _pair(kernel_size), _pair(padding)
    steps = _pair(stride) if len(stride) else kernel
    outer, over = x.ndim - 2, (0, 0)
    if ceil_mode:
        h, w = (_over(size, *each) for size, *each in zip(x.shape[outer:], kernel, steps, pads, strict=True))
        over = (h, w)

    def sums(values: Any, before: tuple[int, int]) -> Any:
        return lax.reduce_window(
            values, jnp.zeros((), values.dtype), lax.add,
            window_dimensions=(*[1] * outer, *kernel), window_strides=(*[1] * outer, *steps),
            padding=(*[(0, 0)] * outer, *((p, p + more) for p, more in zip(before, over, strict=True))),
        )  # fmt: skip

    y = wide(x)
    if divisor_override is not None:
        count: Any = divisor_override
    elif not count_include_pad:
        count = sums(jnp.ones_like(y), pads)
    elif over == (0, 0):
        count = kernel[0] * kernel[1]
    else:  # what a window has beyond the padding is not counted
        sides = [(0, 0)] * outer + [(p, p) for p in pads]
        count = sums(jnp.pad(jnp.ones_like(y), sides, constant_values=1), (0, 0))
    return (sums(y, pads) / count).astype(x.dtype)


def _over(size: Any, kernel: int, step: int, pad: int) -> int:
    """How far the last window reaches beyond the padding, with `ceil_mode`."""
    if not isinstance(size, int):
        raise NotImplementedError("ceil_mode at a free size (--static fixes it)")
    last = -((kernel - size - 2 * pad) // step) * step
    if last >= size + pad:
        last -= step
    return max(0, last + kernel - size - 2 * pad)


def _pair(given: Sequence[int]) -> tuple[int, int]:
    return (given[0], given[0]) if len(given) == 1 else (given[0], given[1])
