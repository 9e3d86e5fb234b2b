"""T2IAdapter: a small network that makes of a picture, once, what is added inside the UNet's way down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporter.architectures._parts import adapter, expect_class
from exporter.architectures.base import Component, Size, TensorSpec
from exporter.architectures.controlnet import INTRABLOCK
from exporter.checkpoints import Checkpoint
from exporter.errors import CheckpointError

if TYPE_CHECKING:
    import torch

NAME = "adapter"
XL = "full_adapter_xl"


def adapters(checkpoint: Checkpoint, native: Size) -> list[Component]:
    """The T2I-Adapter of a checkpoint; none where its pipeline has none.

    Raises:
        CheckpointError: The pipeline wants one and there is none, or it does not go with the UNet.
    """
    if "Adapter" not in checkpoint.pipeline_class:
        return []
    expect_class(checkpoint, NAME, ("T2IAdapter",))
    config = checkpoint.config(NAME)
    _check(checkpoint, config, native)

    def construct() -> Any:
        from diffusers import T2IAdapter

        return T2IAdapter.from_config(config)

    levels = len(checkpoint.config("unet")["block_out_channels"])
    picture = ("batch", int(config.get("in_channels", 3)), "height", "width")
    component = Component(
        name=NAME,
        folder=NAME,
        checkpoint=checkpoint,
        class_name="T2IAdapter",
        inputs=(TensorSpec("control_image", "float32", picture),),
        outputs=tuple(
            TensorSpec(spec.name.replace(INTRABLOCK, "features"), spec.dtype, spec.dims)
            for spec in _residuals(config, native.factor)
        ),
        native=native,
        construct=construct,
        adapt=adapter("T2I"),
        make_inputs={"control_image": _picture},
        multiple=2 ** (levels - 1),
    )
    return [component]


def features_of(found: list[Component]) -> tuple[TensorSpec, ...]:
    """What the adapter gives the UNet, by the UNet's names, in order."""
    return _residuals(found[0].config, found[0].native.factor) if found else ()


def _shapes(config: dict[str, Any], factor: int) -> list[tuple[int, int]]:
    """(channels, latent cells to one of its own) of each feature."""
    kind, first = config.get("adapter_type", "full_adapter"), int(config.get("downscale_factor", 8)) // factor
    channels = [int(n) for n in config.get("channels", (320, 640, 1280, 1280))]
    if kind == "light_adapter":
        channels.append(channels[-1])
    if kind == XL:  # one halving only, before the third
        return [(width, first * (2 if level > 1 else 1)) for level, width in enumerate(channels)]
    return [(width, first * 2**level) for level, width in enumerate(channels)]


def _residuals(config: dict[str, Any], factor: int) -> tuple[TensorSpec, ...]:
    def dims(share: int) -> tuple[str, str]:
        tail = f"_{share}" if share > 1 else ""
        return f"latent_height{tail}", f"latent_width{tail}"

    return tuple(
        TensorSpec(f"{INTRABLOCK}_{number}", "float32", ("batch", width, *dims(share)))
        for number, (width, share) in enumerate(_shapes(config, factor))
    )


def _check(checkpoint: Checkpoint, config: dict[str, Any], native: Size) -> None:
    base = checkpoint.config("unet")
    widths = [int(width) for width in base["block_out_channels"]]
    kinds = base.get("down_block_types") or ["CrossAttnDownBlock2D"] * len(widths)
    wanted = []
    for level, (width, kind) in enumerate(zip(widths, kinds, strict=True)):
        # A block without attention takes it after its own halving, which the last one has not.
        after = "CrossAttn" not in kind and level < len(widths) - 1
        wanted.append((width, 2 ** (level + after)))
    given = _shapes(config, native.factor)
    if given[: len(wanted)] != wanted or given[len(wanted) :] not in ([], [wanted[-1]]):
        raise CheckpointError(
            f"{checkpoint.source}, component {NAME!r}: the T2I-Adapter gives features of (channels, latent "
            f"cells each) {given}, the UNet takes {wanted}: it was made for another model.",
            hint="Take a T2I-Adapter of the same model family (one of SDXL for SDXL).",
        )


def _picture(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
    import torch

    return torch.rand(spec.shape(size), generator=generator)
