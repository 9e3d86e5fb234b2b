"""UNet2DConditionModel, shared by the Stable Diffusion families."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporter.architectures._parts import adapter
from exporter.architectures._vae import rename_vae, vae_factor
from exporter.architectures.base import Component, Size, TensorSpec
from exporter.architectures.ip_adapter import KEY as IP_ADAPTER
from exporter.architectures.ip_adapter import SCALE
from exporter.architectures.ip_adapter import scale as any_scale
from exporter.checkpoints import Checkpoint
from exporter.errors import CheckpointError

if TYPE_CHECKING:
    import torch

UNKNOWN = ("class_embed_type", "num_class_embeds", "encoder_hid_dim", "encoder_hid_dim_type")
"""Settings that give the UNet an input no family here feeds (class labels, picture embeddings)."""


def native_size(checkpoint: Checkpoint, text_encoder: str) -> Size:
    """The training size: the UNet's `sample_size` times the VAE's factor; two rows, for guidance."""
    factor = vae_factor(checkpoint.config("vae"))
    sample = checkpoint.config("unet").get("sample_size") or 64
    height, width = (sample, sample) if isinstance(sample, int) else sample
    tokens = int(checkpoint.config(text_encoder).get("max_position_embeddings", 77))
    return Size(batch=2, height=height * factor, width=width * factor, sequence=tokens, factor=factor)


def unet(
    checkpoint: Checkpoint,
    folder: str,
    native: Size,
    *,
    text_width: int,
    pooled: int = 0,
    residuals: tuple[TensorSpec, ...] = (),
    picture: tuple[TensorSpec, ...] = (),
) -> Component:
    """The component of a `UNet2DConditionModel` folder.

    Args:
        text_width: Channels of the text the pipeline will give it.
        pooled: Channels of `text_embeds`; 0 where the family has none.
        residuals: What a ControlNet gives it, as `controlnet.residuals_of` says.
        picture: What its IP-Adapter takes, as `ip_adapter.picture_inputs` says.

    Raises:
        CheckpointError: The config wants an input that the family does not feed, or other text.
    """
    config = checkpoint.config(folder)
    where = f"{checkpoint.source}, component {folder!r}"
    odd = next((key for key in UNKNOWN if config.get(key) is not None), None)
    if odd is not None:
        raise CheckpointError(
            f"{where}: a UNet with {odd} = {config[odd]!r} is not converted by this version."
        )
    cross = text_channels(config)
    if cross != text_width:
        raise CheckpointError(
            f"{where}: the UNet wants text of {cross} channels (cross_attention_dim), "
            f"the text encoders of this checkpoint give {text_width}.",
            hint="Parts of two different models, or a text encoder that is missing from model_index.json.",
        )
    added = added_inputs(config, where, pooled)
    guidance = config.get("time_cond_proj_dim")
    if guidance is not None:
        added = (*added, TensorSpec("timestep_cond", "float32", ("batch", int(guidance))))
    latent = ("latent_height", "latent_width")
    names = tuple(spec.name for spec in (*added, *picture, *residuals))

    def construct() -> Any:
        from diffusers import UNet2DConditionModel

        made = UNet2DConditionModel.from_config({k: v for k, v in config.items() if k != IP_ADAPTER})
        if not picture:
            return made
        from exporter.architectures._ip_adapter import give

        return give(made, config[IP_ADAPTER], cross)

    return Component(
        name=folder,
        folder=folder,
        checkpoint=checkpoint,
        class_name="UNet2DConditionModel",
        inputs=(
            TensorSpec("sample", "float32", ("batch", int(config["in_channels"]), *latent)),
            # float32, so that schedulers with fractional timesteps (Euler, LMS) keep their value.
            TensorSpec("timestep", "float32", ()),
            TensorSpec("encoder_hidden_states", "float32", ("batch", "sequence", cross)),
            *added,
            *picture,
            *residuals,
        ),
        outputs=(TensorSpec("out_sample", "float32", ("batch", int(config["out_channels"]), *latent)),),
        native=native,
        construct=construct,
        adapt=adapter("controlled_unet", names=names) if picture or residuals else adapter("UNet"),
        make_inputs={"timestep": timestep, "time_ids": time_ids, SCALE: any_scale},
        renames=rename_vae,
        rows=2 if guidance is None else 1,
        multiple=2 ** (len(config["block_out_channels"]) - 1),
    )


def text_channels(config: dict[str, Any]) -> int:
    """Channels of the text that a UNet, or a part made for one, takes."""
    cross = config["cross_attention_dim"]
    return int(cross[0]) if isinstance(cross, list) else int(cross)


def added_inputs(config: dict[str, Any], where: str, pooled: int) -> tuple[TensorSpec, ...]:
    """SDXL's conditions: the pooled text, and sizes and crops (or an aesthetic score) as numbers."""
    kind = config.get("addition_embed_type")
    if kind is None and not pooled:
        return ()
    if kind != "text_time" or not pooled:
        raise CheckpointError(
            f"{where}: addition_embed_type is {kind!r}, which does not go with this kind of pipeline.",
            hint="_class_name of model_index.json and unet/config.json do not belong together.",
        )
    each = int(config["addition_time_embed_dim"])
    width = int(config["projection_class_embeddings_input_dim"])
    numbers, rest = divmod(width - pooled, each)
    if rest or numbers < 1:
        raise CheckpointError(
            f"{where}: projection_class_embeddings_input_dim {width} is not the "
            f"pooled text's {pooled} channels and a whole number of embeddings of {each}.",
            hint="config.json of the UNet and of text_encoder_2 do not belong together.",
        )
    return (
        TensorSpec("text_embeds", "float32", ("batch", pooled)),
        # Pixels: float16 holds no odd number above 2048, and the sine of the number is what counts.
        TensorSpec("time_ids", "float32", ("batch", numbers), exact=True),
    )


def timestep(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
    """A whole step of 1 to 999."""
    import torch

    value = torch.randint(1, 1000, (), generator=generator)
    return value.to(getattr(torch, spec.dtype))


def time_ids(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
    """Original size, crop, and target size (or aesthetic score), as the SDXL pipelines give them."""
    import torch

    shape = spec.shape(size)
    numbers = [size.height, size.width, 0, 0, size.height, size.width]
    if shape[1] == 5:
        numbers = [size.height, size.width, 0, 0, 6]
    row = torch.tensor([numbers[i % len(numbers)] for i in range(shape[1])], dtype=torch.float32)
    crop = torch.randint(0, 64, (shape[0], 1), generator=generator)
    rows = row.repeat(shape[0], 1)
    rows[:, 2:4] += crop
    return rows
