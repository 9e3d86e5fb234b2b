"""PixArt-α and PixArt-Σ: T5's tokens, of which a mask says which are padding, and a transformer over patches.

The transformer gives a variance beside the noise (twice the channels), which the pipelines leave out. That of
α at 1024 pixels also takes the picture's size and aspect ratio.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporter.architectures._parts import adapter, expect_class
from exporter.architectures._t5 import T5, prompt_mask, t5_text_encoder
from exporter.architectures._transformer import OUTPUT, expect_latents, expect_width, pixels, timestep
from exporter.architectures._vae import vae_components, vae_factor
from exporter.architectures.base import Component, Size, TensorSpec
from exporter.checkpoints import Checkpoint
from exporter.errors import CheckpointError

if TYPE_CHECKING:
    import torch

ENCODED = (
    "prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask",
)  # fmt: skip
CLASS, OLD_CLASS = "PixArtTransformer2DModel", "Transformer2DModel"
"""Checkpoints older than diffusers 0.29 name the class that had this transformer among others."""
NORM = "ada_norm_single"
"""`norm_type` by which the library tells this transformer from the others of the old class."""
ALPHA = "PixArtAlphaPipeline"
TOKENS = {ALPHA: 120, "PixArtSigmaPipeline": 300}
"""`max_sequence_length` of the pipelines."""
SIZED = 128
"""`sample_size` at which α's pipeline gives the size and the aspect ratio."""


def components(checkpoint: Checkpoint) -> list[Component]:
    """`text_encoder`, `transformer`, `vae_decoder`, `vae_encoder`.

    Raises:
        CheckpointError: A part is missing, of another class, or does not fit the others.
    """
    expect_class(checkpoint, "transformer", (CLASS, OLD_CLASS))
    expect_class(checkpoint, "text_encoder", (T5,))
    config = checkpoint.config("transformer")
    factor = vae_factor(checkpoint.config("vae"))
    height, width = pixels(config["sample_size"], factor)
    tokens = TOKENS[checkpoint.pipeline_class]
    native = Size(batch=2, height=height, width=width, sequence=tokens, factor=factor)
    text = t5_text_encoder(checkpoint, "text_encoder", native, mask=True)
    return [text, _transformer(checkpoint, "transformer", native, text), *vae_components(checkpoint, native)]


def _transformer(checkpoint: Checkpoint, folder: str, native: Size, text: Component) -> Component:
    config = checkpoint.config(folder)
    kind = checkpoint.component_classes[folder][1]
    if config.get("norm_type", NORM) != NORM:
        raise CheckpointError(
            f"{checkpoint.source}, component {folder!r}: a {kind} with norm_type {config['norm_type']!r} is "
            f"another model; a {checkpoint.pipeline_class} is converted with {NORM!r} only."
        )
    width = expect_width(
        checkpoint, folder, "caption_channels", int(text.config["d_model"]), "the tokens of text_encoder"
    )
    channels, given = expect_latents(checkpoint, folder)
    sized = _is_sized(checkpoint, folder, config)
    latent = ("latent_height", "latent_width")
    inputs = [
        TensorSpec("hidden_states", "float32", ("batch", channels, *latent)),
        TensorSpec("encoder_hidden_states", "float32", ("batch", "sequence", width)),
        TensorSpec("encoder_attention_mask", "int64", ("batch", "sequence")),
        TensorSpec("timestep", "float32", ("batch",)),
    ]
    if sized:  # of which sines are taken: as they are
        inputs.append(TensorSpec("resolution", "float32", ("batch", 2), exact=True))
        inputs.append(TensorSpec("aspect_ratio", "float32", ("batch", 1), exact=True))

    def construct() -> Any:
        import inspect

        from diffusers import PixArtTransformer2DModel

        known = inspect.signature(PixArtTransformer2DModel.__init__).parameters
        return PixArtTransformer2DModel.from_config({k: v for k, v in config.items() if k in known})

    return Component(
        name=folder,
        folder=folder,
        checkpoint=checkpoint,
        class_name=kind,
        inputs=tuple(inputs),
        outputs=(TensorSpec(OUTPUT, "float32", ("batch", given, *latent)),),
        native=native,
        construct=construct,
        adapt=adapter("MaskedTransformer"),
        make_inputs={
            "timestep": timestep,
            "encoder_attention_mask": prompt_mask,
            "resolution": _resolution,
            "aspect_ratio": _aspect_ratio,
        },
        rows=2,
        multiple=int(config.get("patch_size") or 2),
    )


def _is_sized(checkpoint: Checkpoint, folder: str, config: dict[str, Any]) -> bool:
    """Whether the transformer takes the picture's size, which must be whether the pipeline gives it.

    Raises:
        CheckpointError: Only one of the two.
    """
    side = config.get("sample_size", SIZED)
    wanted = config.get("use_additional_conditions")
    wanted = side == SIZED if wanted is None else bool(wanted)
    gives = checkpoint.pipeline_class == ALPHA and side == SIZED
    if wanted != gives:
        raise CheckpointError(
            f"{checkpoint.source}, component {folder!r}: the transformer "
            f"{'takes' if wanted else 'does not take'} the picture's size (use_additional_conditions, or a "
            f"sample_size of {SIZED} without it), a {checkpoint.pipeline_class} with a sample_size of {side} "
            f"{'gives' if gives else 'does not give'} it.",
            hint="config.json of the transformer and model_index.json do not belong together.",
        )
    return wanted


def _resolution(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
    """(height, width) in pixels, for every row."""
    import torch

    return torch.tensor([[size.height, size.width]]).float().expand(spec.shape(size)).contiguous()


def _aspect_ratio(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
    import torch

    return torch.full(spec.shape(size), size.height / size.width)
