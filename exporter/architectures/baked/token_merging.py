"""Token merging (ToMe) in the graph: similar tokens are one for self-attention, and several again behind it.

The reference is the library's module patched by `tomesd`, the package of the paper's authors. It keeps the
top left token of every 2×2 square, with no random choice; so do we.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from exporter.architectures._parts import adapter
from exporter.architectures.baked import variant
from exporter.architectures.baked.deciding import DECIDES, Decisions, likeness_of
from exporter.architectures.base import Component, TensorSpec
from exporter.architectures.weightless import no_weights
from exporter.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

MANY = 1 << 16
"""Tokens up to which a share of them is counted as `tomesd` counts it."""


def bake(component: Component, *, ratio: float, max_downsample: int) -> list[Component]:
    """The UNet with merging blocks down to a level.

    Raises:
        UsageError: Another kind of attention, none in these levels, or a level whose sides may be odd.
    """
    levels = len(component.config["block_out_channels"])
    if 2 * max_downsample > 2 ** (levels - 1):
        raise UsageError(
            f"The technique token-merging merges squares of 2×2 tokens: at max_downsample {max_downsample} "
            f"the sides of this UNet's {levels} levels may be odd.",
            hint=f"Take at most {max(1, 2 ** (levels - 2))}.",
        )
    share = share_of(ratio)
    plain = component.reference or component
    build = plain.construct

    def patched() -> Any:
        return by_tomesd(build(), ratio, max_downsample)

    said = variant(component, "token-merging", ratio=ratio, max_downsample=max_downsample)
    paths = decisions_of(plain, max_downsample)
    if not paths:
        deeper = next((2**n for n in range(1, levels - 1) if decisions_of(plain, 2**n)), None)
        raise UsageError(
            f"The technique token-merging: down to max_downsample {max_downsample} this UNet has no "
            "attention (SDXL's outermost level has none), so nothing would be merged.",
            hint=f"Take max_downsample {deeper}." if deeper else None,
        )

    def told(merging: Component) -> Component:
        library = merging.reference
        if library is None:  # it has weights of its own, from the artifact
            own = merging.construct
            other = replace(merging, construct=lambda: by_tomesd(own(), ratio, max_downsample))
            library = other.holding(merging.weights)
        likeness = [TensorSpec(likeness_of(path), "float32", ()) for path in paths]
        listening = replace(
            library,
            outputs=(*library.outputs, *likeness),
            adapt=adapter("ToldUNet", room="baked.told", paths=paths),
            variant=f"{library.variant} told",
        )
        return listening if merging.reference is not None else listening.holding(library.weights)

    merging = replace(
        component,
        decides=Decisions(paths, told),
        adapt=adapter("MergingUNet", room="baked.merging", share=share, deepest=max_downsample),
        variant=said,
        reference=replace(plain, construct=patched, variant=f"{said} by tomesd"),
    )
    return [merging]


def decisions_of(component: Component, max_downsample: int) -> tuple[str, ...]:
    """Names of what a merging UNet decides, as graphs show them."""
    from exporter.architectures.baked.merging import merging_blocks

    with no_weights():
        unet = component.construct()
    return tuple(f"{path}.{DECIDES}" for path, _ in merging_blocks(unet, max_downsample))


def share_of(ratio: float) -> tuple[int, int]:
    """(numerator, denominator) so that `n * numerator // denominator` is `int(n * ratio)`, as tomesd has it.

    Raises:
        UsageError: There is none for this ratio.
    """
    share = Fraction(ratio).limit_denominator(1000)
    counts = range(4, MANY, 4)
    if any(int(n * ratio) != n * share.numerator // share.denominator for n in counts):
        raise UsageError(
            f"The technique token-merging: a graph cannot count a share of {ratio!r}.",
            hint="Take a ratio such as 0.3 or 0.5.",
        )
    return share.numerator, share.denominator


def by_tomesd(module: nn.Module, ratio: float, max_downsample: int) -> nn.Module:
    """A UNet of the library, patched by the package."""
    import tomesd

    patched: nn.Module = tomesd.apply_patch(
        module, ratio=ratio, max_downsample=max_downsample, use_rand=False
    )
    return patched
