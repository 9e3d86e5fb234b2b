"""Sana: Gemma 2 reads the prompt, a transformer with linear attention paints in latents of 32×32 pixels.

The pipeline puts an instruction before the prompt, and keeps the prompt's last tokens; that is diffusers' own
code and stays outside. So the text encoder gets more tokens than the transformer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from exporter.architectures._gemma import GEMMA2, gemma2_text_encoder, prompt_mask
from exporter.architectures._parts import adapter, expect_class
from exporter.architectures._transformer import OUTPUT, expect_latents, expect_width, pixels, timestep
from exporter.architectures._vae import DEEP, vae_components, vae_factor
from exporter.architectures.base import Component, Size, TensorSpec
from exporter.checkpoints import Checkpoint
from exporter.errors import CheckpointError

ENCODED = (
    "prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask",
)  # fmt: skip
CLASS = "SanaTransformer2DModel"
TOKENS = 300
"""`max_sequence_length` of the pipeline."""


def components(checkpoint: Checkpoint) -> list[Component]:
    """`text_encoder`, `transformer`, `vae_decoder`, `vae_encoder`.

    Raises:
        CheckpointError: A part is missing, of another class, or does not fit the others.
    """
    expect_class(checkpoint, "transformer", (CLASS,))
    expect_class(checkpoint, "text_encoder", (GEMMA2,))
    expect_class(checkpoint, "vae", (DEEP,))
    factor = vae_factor(checkpoint.config("vae"))
    height, width = pixels(checkpoint.config("transformer")["sample_size"], factor)
    native = Size(batch=2, height=height, width=width, sequence=TOKENS, factor=factor)
    text = gemma2_text_encoder(checkpoint, "text_encoder", native)
    text = replace(text, varying=("sequence",))  # the negative prompt comes without the instruction
    denoiser = _transformer(checkpoint, "transformer", native, text)
    return [text, denoiser, *vae_components(checkpoint, native, (DEEP,))]


def _transformer(checkpoint: Checkpoint, folder: str, native: Size, text: Component) -> Component:
    config = checkpoint.config(folder)
    if config.get("guidance_embeds"):
        raise CheckpointError(
            f"{checkpoint.source}, component {folder!r}: a {CLASS} with guidance_embeds is for Sana-Sprint; "
            f"a {checkpoint.pipeline_class} gives it no guidance."
        )
    given = int(text.config["hidden_size"])
    width = expect_width(checkpoint, folder, "caption_channels", given, "the tokens of text_encoder")
    channels, out = expect_latents(checkpoint, folder)
    latent = ("latent_height", "latent_width")

    def construct() -> Any:
        from diffusers import SanaTransformer2DModel

        return SanaTransformer2DModel.from_config(config)

    return Component(
        name=folder,
        folder=folder,
        checkpoint=checkpoint,
        class_name=CLASS,
        inputs=(
            TensorSpec("hidden_states", "float32", ("batch", channels, *latent)),
            TensorSpec("encoder_hidden_states", "float32", ("batch", "sequence", width)),
            TensorSpec("encoder_attention_mask", "int64", ("batch", "sequence")),
            TensorSpec("timestep", "float32", ("batch",)),
        ),
        outputs=(TensorSpec(OUTPUT, "float32", ("batch", out, *latent)),),
        native=native,
        construct=construct,
        adapt=adapter("MaskedTransformer"),
        make_inputs={"timestep": timestep, "encoder_attention_mask": prompt_mask},
        rows=2,
        multiple=int(config.get("patch_size") or 1),
    )
