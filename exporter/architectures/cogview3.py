"""CogView3-Plus: T5's tokens and the latents' patches go through one transformer in a row.

It takes three pairs of numbers besides, as SDXL does: the size of the picture, before and after it was cut,
and where. Without a negative prompt the pipeline gives zeros for its text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporter.architectures._parts import adapter, expect_class
from exporter.architectures._t5 import t5_text_encoder
from exporter.architectures._transformer import OUTPUT, expect_latents, expect_width, pixels, timestep
from exporter.architectures._vae import vae_components, vae_factor
from exporter.architectures.base import Component, Size, TensorSpec
from exporter.checkpoints import Checkpoint

if TYPE_CHECKING:
    import torch

ENCODED = ("prompt_embeds", "negative_prompt_embeds")
"""What the pipeline's `encode_prompt` returns, under the names by which its call takes it again."""
CLASS = "CogView3PlusTransformer2DModel"
TOKENS = 224
"""`max_sequence_length` of the pipeline."""

SIZES = ("original_size", "target_size", "crop_coords")


def components(checkpoint: Checkpoint) -> list[Component]:
    """`text_encoder`, `transformer`, `vae_decoder`, `vae_encoder`: the order in which the pipeline uses them.

    Raises:
        CheckpointError: A part is missing, of another class, or does not fit the others.
    """
    expect_class(checkpoint, "transformer", (CLASS,))
    factor = vae_factor(checkpoint.config("vae"))
    height, width = pixels(checkpoint.config("transformer")["sample_size"], factor)
    native = Size(batch=2, height=height, width=width, sequence=TOKENS, factor=factor)
    text = t5_text_encoder(checkpoint, "text_encoder", native)
    return [text, _transformer(checkpoint, "transformer", native, text), *vae_components(checkpoint, native)]


def _transformer(checkpoint: Checkpoint, folder: str, native: Size, text: Component) -> Component:
    config = checkpoint.config(folder)
    given = int(text.config["d_model"])
    width = expect_width(checkpoint, folder, "text_embed_dim", given, "the tokens of text_encoder")
    channels, out = expect_latents(checkpoint, folder)
    latent = ("latent_height", "latent_width")
    inputs = (
        TensorSpec("hidden_states", "float32", ("batch", channels, *latent)),
        TensorSpec("encoder_hidden_states", "float32", ("batch", "sequence", width)),
        TensorSpec("timestep", "float32", ("batch",)),
        # Pixels, of which sines are taken: as they are.
        *(TensorSpec(name, "float32", ("batch", 2), exact=True) for name in SIZES),
    )

    def construct() -> Any:
        import diffusers

        return getattr(diffusers, CLASS).from_config(config)

    return Component(
        name=folder,
        folder=folder,
        checkpoint=checkpoint,
        class_name=CLASS,
        inputs=inputs,
        outputs=(TensorSpec(OUTPUT, "float32", ("batch", out, *latent)),),
        native=native,
        construct=construct,
        adapt=adapter("by_name", room="_adapters_more", names=[spec.name for spec in inputs]),
        make_inputs={"timestep": timestep, **dict.fromkeys(SIZES[:2], _whole), SIZES[2]: _uncut},
        rows=2,
        multiple=int(config["patch_size"]),
    )


def _whole(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
    """(height, width) in pixels, for every row."""
    import torch

    return torch.tensor([[size.height, size.width]]).float().expand(spec.shape(size)).contiguous()


def _uncut(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
    import torch

    return torch.zeros(spec.shape(size))
