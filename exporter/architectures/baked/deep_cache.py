"""DeepCache as two UNets: `unet` also gives what its deep part made, `unet_shallow` takes it instead.

Which one a step calls is `driving.DeepCaching`'s matter. The reference of the shallow one is the library's
whole UNet, whose deep part is computed and then replaced by what is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from exporter.architectures._parts import adapter
from exporter.architectures.baked import only_of, variant
from exporter.architectures.base import Component, TensorSpec
from exporter.checkpoints import StoredTensor
from exporter.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

SHALLOW = "unet_shallow"
CACHED = "cached"
DEEPEST = 2
"""The package numbers skip connections by three a level; graphs are made for the outermost level only."""


def bake(component: Component, *, interval: int, branch: int) -> list[Component]:
    """`unet` and `unet_shallow`.

    Args:
        interval: Of whole steps; it is the runner's.
        branch: Skip connection at which the shallow part turns back, as the package numbers them.

    Raises:
        UsageError: A branch below the outermost level, or a UNet of one level.
    """
    config = component.config
    channels, layers = config["block_out_channels"], config.get("layers_per_block", 2)
    count = layers if isinstance(layers, int) else layers[0]
    if branch > DEEPEST:
        raise UsageError(
            f"The technique deep-cache: branch {branch} turns back below the outermost level, of which no "
            "graph is made.",
            hint="Take branch 0, 1 or 2.",
        )
    if len(channels) < 2:
        raise UsageError("The technique deep-cache needs a UNet of two levels or more.")
    depth = min(branch, count)
    width = channels[0] if depth < count else channels[1]
    kept = TensorSpec(CACHED, "float32", ("batch", width, "latent_height", "latent_width"))
    said = variant(component, "deep-cache", interval=interval, branch=branch)
    build = component.construct

    def construct() -> Any:
        return shallow_part(build(), depth)

    def derive(stored: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        return only_of(construct, component.derive(stored))

    source = producer(config, depth, count)
    plain = component.reference or component
    whole = adapter("KeepingUNet", room="baked.caching", source=source)
    inputs = tuple(s for s in component.inputs if reads_text(config, depth) or s.name != TEXT)
    full = replace(component, outputs=(*component.outputs, kept), adapt=whole, variant=said)
    if component.reference is not None:
        full = replace(full, reference=replace(plain, outputs=full.outputs, adapt=whole, variant=said))
    shallow = replace(
        component,
        name=SHALLOW,
        beside=component.name,
        inputs=(*inputs, kept),
        construct=construct,
        derive=derive,
        adapt=adapter("ShallowUNet", room="baked.caching", depth=depth),
        variant=f"{said} {SHALLOW}",
        reference=replace(
            plain,
            inputs=(*inputs, kept),
            adapt=adapter("ReplacingUNet", room="baked.caching", source=source),
            variant=f"{said} {SHALLOW}",
        ),
    )
    return [full, shallow]


TEXT = "encoder_hidden_states"


def reads_text(config: Mapping[str, Any], depth: int) -> bool:
    """Whether the shallow part attends to the text; SDXL's outermost level does not."""
    down = "CrossAttn" in config["down_block_types"][0] and depth > 0
    return down or "CrossAttn" in config["up_block_types"][-1]


def producer(config: Mapping[str, Any], depth: int, count: int) -> str:
    """Path of the module whose output the layer at `depth` (0 is the last) of the last block takes."""
    last = len(config["up_block_types"]) - 1
    if depth == count:
        return f"up_blocks.{last - 1}"
    kind = "attentions" if "CrossAttn" in config["up_block_types"][-1] else "resnets"
    return f"up_blocks.{last}.{kind}.{count - depth - 1}"


def shallow_part(unet: nn.Module, depth: int) -> nn.Module:
    """The UNet without the modules that the shallow part does not run; the others keep their paths."""
    from torch import nn

    whole: Any = unet
    first, last = whole.down_blocks[0], whole.up_blocks[-1]
    for blocks, spared in ((whole.down_blocks, first), (whole.up_blocks, last)):
        for name, block in list(blocks.named_children()):
            if block is not spared:
                blocks._modules[name] = nn.Identity()
    whole.mid_block = nn.Identity()
    first.downsamplers = None
    for kind in ("resnets", "attentions"):
        for block, idle in ((first, slice(depth, None)), (last, slice(None, -1 - depth))):
            layers: Any = getattr(block, kind, None) or nn.ModuleList()
            for name in list(layers._modules)[idle]:
                layers._modules[name] = nn.Identity()
    return unet
