"""T-GATE as two UNets: `unet` also gives what its cross-attentions made, `unet_gated` takes that and no text.

Which one a step calls is `driving.Gating`'s matter. The reference of the gated one is the library's UNet
whose cross-attentions give what they are given, as the technique of PyTorch has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from exporter.architectures._parts import adapter
from exporter.architectures.baked import only_of, variant
from exporter.architectures.base import Component, TensorSpec
from exporter.architectures.weightless import no_weights
from exporter.checkpoints import StoredTensor
from exporter.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

GATED = "unet_gated"
KEPT = "cross_attention"
CROSS = ".attn2"
TEXT = "encoder_hidden_states"

Place = tuple[str, int, int]
"""A cross-attention: its path, its channels, and how much smaller than the latents its level is."""


def bake(component: Component, *, gate: int) -> list[Component]:
    """`unet` and `unet_gated`. Their common tensor has the latents' sides whatever the level: what a smaller
    level has of tokens is channels there.

    Args:
        gate: The step from which on the second one is called; it is the runner's.

    Raises:
        UsageError: A UNet without cross-attention, or one of too few channels for its level.
    """
    places = places_of(component)
    if not places:
        raise UsageError("The technique t-gate needs a UNet with cross-attention.")
    for path, channels, factor in places:
        if channels % factor**2:
            raise UsageError(
                f"The technique t-gate: {path} has {channels} channels, which {factor}×{factor} tokens do "
                "not divide."
            )
    width = sum(channels // factor**2 for _, channels, factor in places)
    kept = TensorSpec(KEPT, "float32", ("batch", width, "latent_height", "latent_width"))
    said = variant(component, "t-gate", gate=gate)
    build = component.construct

    def construct() -> Any:
        return without_text(build())

    def derive(stored: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        return only_of(construct, component.derive(stored))

    whole = adapter("GateableUNet", room="baked.gating", places=tuple(places))
    inputs = (*(spec for spec in component.inputs if spec.name != TEXT), kept)
    full = replace(component, outputs=(*component.outputs, kept), adapt=whole, variant=said)
    gated = replace(
        component,
        name=GATED,
        beside=component.name,
        inputs=inputs,
        construct=construct,
        derive=derive,
        adapt=adapter("GatedUNet", room="baked.gating", places=tuple(places)),
        variant=f"{said} {GATED}",
        rows=1,  # guidance has nothing left to tell apart
    )
    plain = component.reference or component
    as_library = replace(gated, construct=plain.construct, derive=plain.derive)
    return [full, replace(gated, reference=as_library)]


def places_of(component: Component) -> list[Place]:
    """The cross-attentions of a UNet in the order in which they run."""
    with no_weights():
        unet = component.construct()
    from exporter.architectures.baked.merging import factor_of

    rooms = ("down_blocks", "mid_block", "up_blocks")
    found = [
        (path, int(module.to_out[0].out_features), factor_of(unet, path))
        for path, module in unet.named_modules()
        if path.endswith(CROSS)
    ]
    return sorted(found, key=lambda place: rooms.index(place[0].partition(".")[0]))


def without_text(unet: nn.Module) -> nn.Module:
    """The UNet without its cross-attentions and what only they read; what is left keeps its paths."""
    from torch import nn

    for path in [path for path, _ in unet.named_modules()]:
        if path.endswith(CROSS):
            block = unet.get_submodule(path.rpartition(".")[0])
            block.attn2, block.norm2 = nn.Identity(), nn.Identity()
    return unet
