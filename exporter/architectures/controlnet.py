"""ControlNetModel: a copy of the UNet's way down that makes of a picture what is added to the UNet's own."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from exporter.architectures._parts import adapter, expect_class
from exporter.architectures._unet import UNKNOWN, added_inputs, text_channels, time_ids, timestep
from exporter.architectures._vae import rename_vae
from exporter.architectures.base import Component, Size, TensorSpec
from exporter.checkpoints import Checkpoint
from exporter.errors import CheckpointError

if TYPE_CHECKING:
    import torch

DOWN, MIDDLE = "down_block_additional_residuals", "mid_block_additional_residual"
"""The UNet's inputs, by diffusers' names; of the list `DOWN` each with its number."""
INTRABLOCK = "down_intrablock_additional_residuals"
"""The list that the UNet takes of a T2I-Adapter."""
ROTARY = "image_rotary_emb"
"""The pair, cosines and sines, that HunyuanDiT's transformer takes."""
FOLDER = re.compile(r"^controlnet(_\d+)?$")
"""The first lies in `controlnet`, the next in `controlnet_1` …: as diffusers stores several."""
LEVELS = ("block_out_channels", "layers_per_block", "addition_embed_type")
"""What ControlNet and UNet must have alike, beside the text."""


def is_controlnet(name: str) -> bool:
    """Whether a component or a folder of that name is a ControlNet."""
    return FOLDER.match(name) is not None


def numbered(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a denoiser's call, each tensor of a list under its own name, the others as they are."""
    lists = (DOWN, INTRABLOCK, ROTARY)
    others = {name: value for name, value in given.items() if name not in lists}
    return others | {f"{each}_{n}": value for each in lists for n, value in enumerate(given.get(each) or ())}


def control_argument(takes: Collection[str]) -> str | None:
    """Under which name a pipeline with these parameters takes what its ControlNet or T2I-Adapter reads.

    None if it has neither.

    One that starts from noise calls it `image`, one that starts from a picture has that name taken.
    """
    if scale_argument(takes) is None:
        return None
    return "control_image" if "control_image" in takes else "image"


def scale_argument(takes: Collection[str]) -> str | None:
    """Under which name it takes how much that counts."""
    names = ("controlnet_conditioning_scale", "adapter_conditioning_scale")
    return next((name for name in names if name in takes), None)


def controller(pipeline: Any) -> Any:
    """The pipeline's ControlNet, several of them joined, or its T2I-Adapter."""
    found = getattr(pipeline, "controlnet", None)
    return pipeline.adapter if found is None else found


def joined(modules: Mapping[str, Any]) -> dict[str, Any]:
    """Modules by the names a pipeline takes: several ControlNets are one `MultiControlNetModel`."""
    names = [name for name in modules if is_controlnet(name)]
    if len(names) < 2:
        return dict(modules)
    from diffusers import MultiControlNetModel

    others = {name: module for name, module in modules.items() if name not in names}
    return others | {"controlnet": MultiControlNetModel([modules[name] for name in names])}


def controlnets(checkpoint: Checkpoint, native: Size, *, pooled: int = 0) -> list[Component]:
    """The ControlNets of a checkpoint in their order; none where its pipeline has none.

    Args:
        pooled: Channels of `text_embeds`; 0 where the family has none.

    Raises:
        CheckpointError: The pipeline wants one and there is none, or one does not go with the UNet.
    """
    if "ControlNet" not in checkpoint.pipeline_class:
        return []
    expect_class(checkpoint, "controlnet", ("ControlNetModel",))
    folders = sorted(filter(is_controlnet, checkpoint.component_classes), key=lambda n: (len(n), n))
    return [_controlnet(checkpoint, folder, native, pooled) for folder in folders]


def residuals_of(controls: list[Component]) -> tuple[TensorSpec, ...]:
    """What the ControlNets (all alike in this) give the UNet, by the UNet's names, in order."""
    return _residuals(controls[0].config) if controls else ()


def _controlnet(checkpoint: Checkpoint, folder: str, native: Size, pooled: int) -> Component:
    expect_class(checkpoint, folder, ("ControlNetModel",))
    config, base = checkpoint.config(folder), checkpoint.config("unet")
    _check(checkpoint, folder, config, base, native)
    residuals = _residuals(config)

    def construct() -> Any:
        from diffusers import ControlNetModel

        return ControlNetModel.from_config(config)

    pixels = ("batch", int(config.get("conditioning_channels", 3)), "height", "width")
    latent = ("latent_height", "latent_width")
    return Component(
        name=folder,
        folder=folder,
        checkpoint=checkpoint,
        class_name="ControlNetModel",
        inputs=(
            TensorSpec("sample", "float32", ("batch", int(config["in_channels"]), *latent)),
            TensorSpec("timestep", "float32", ()),
            TensorSpec("encoder_hidden_states", "float32", ("batch", "sequence", text_channels(config))),
            TensorSpec("controlnet_cond", "float32", pixels),
            TensorSpec("conditioning_scale", "float32", ()),
            *added_inputs(config, f"{checkpoint.source}, component {folder!r}", pooled),
        ),
        outputs=tuple(
            TensorSpec(
                spec.name.replace(DOWN, "down_block_res_samples").replace(MIDDLE, "mid_block_res_sample"),
                spec.dtype,
                spec.dims,
            )
            for spec in residuals
        ),
        native=native,
        construct=construct,
        adapt=adapter("ControlNet"),
        make_inputs={
            "timestep": timestep, "time_ids": time_ids, "controlnet_cond": _picture,
            "conditioning_scale": _scale,
        },
        renames=rename_vae,
        rows=2 if base.get("time_cond_proj_dim") is None else 1,
        multiple=2 ** (len(config["block_out_channels"]) - 1),
    )  # fmt: skip


def _check(
    checkpoint: Checkpoint, folder: str, config: dict[str, Any], base: dict[str, Any], native: Size
) -> None:
    where = f"{checkpoint.source}, component {folder!r}"
    odd = next((key for key in UNKNOWN if config.get(key) is not None), None)
    odd = odd or ("global_pool_conditions" if config.get("global_pool_conditions") else None)
    if odd is not None:
        raise CheckpointError(
            f"{where}: a ControlNet with {odd} = {config[odd]!r} is not converted by this version."
        )
    hint = "Take a ControlNet of the same model family (one of Stable Diffusion 1 for one of 1)."
    text, wanted = text_channels(config), text_channels(base)
    if text != wanted:
        raise CheckpointError(
            f"{where}: the ControlNet takes text of {text} channels (cross_attention_dim), the UNet of this "
            f"checkpoint {wanted}: it was made for another model.",
            hint=hint,
        )
    mine, theirs = _shape(config), _shape(base)
    differing = next((key for key in LEVELS if mine[key] != theirs[key]), None)
    if differing is not None:
        raise CheckpointError(
            f"{where}: the ControlNet's {differing} is {mine[differing]}, that of this checkpoint's UNet "
            f"{theirs[differing]}: it was made for another model.",
            hint=hint,
        )
    latents = checkpoint.config("vae").get("latent_channels", 4)
    if config["in_channels"] != latents:
        raise CheckpointError(
            f"{where}: the ControlNet reads {config['in_channels']} channels, the latents have {latents}."
        )
    scale = 2 ** (len(config.get("conditioning_embedding_out_channels") or (16, 32, 96, 256)) - 1)
    if scale != native.factor:
        raise CheckpointError(
            f"{where}: the ControlNet reads a picture {scale} times as large as the latents, the autoencoder "
            f"makes one {native.factor} times as large."
        )


def _shape(config: dict[str, Any]) -> dict[str, Any]:
    """What decides the shapes of the residuals, and the kind of the further inputs."""
    widths = [int(width) for width in config["block_out_channels"]]
    layers = config.get("layers_per_block", 2)
    each = [int(n) for n in layers] if isinstance(layers, list) else [int(layers)] * len(widths)
    return dict(zip(LEVELS, (widths, each, config.get("addition_embed_type")), strict=True))


def _residuals(config: dict[str, Any]) -> tuple[TensorSpec, ...]:
    widths, layers, _ = _shape(config).values()
    found = [(widths[0], 0)]
    for level, (width, count) in enumerate(zip(widths, layers, strict=True)):
        found += [(width, level)] * count
        if level < len(widths) - 1:
            found.append((width, level + 1))
    specs = [_residual(f"{DOWN}_{number}", *each) for number, each in enumerate(found)]
    return (*specs, _residual(MIDDLE, widths[-1], len(widths) - 1))


def _residual(name: str, width: int, level: int) -> TensorSpec:
    share = f"_{2**level}" if level else ""
    return TensorSpec(name, "float32", ("batch", width, f"latent_height{share}", f"latent_width{share}"))


def _picture(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
    import torch

    return torch.rand(spec.shape(size), generator=generator)


def _scale(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
    import torch

    return torch.rand((), generator=generator) + 0.5
