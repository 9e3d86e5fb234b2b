"""Stable Diffusion 3 and 3.5: a transformer over picture and text at once (MMDiT), three text encoders.

The two CLIP encoders give the last but one hidden state (side by side) and a projection each (joined: the
pooled text); T5's tokens follow theirs. A checkpoint without T5 works too: the pipeline puts zeros there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from exporter.architectures._parts import adapter, expect_class, part_config
from exporter.architectures._t5 import t5_text_encoder
from exporter.architectures._text import PROJECTED, clip_text_encoder
from exporter.architectures._transformer import OUTPUT, expect_width, pixels, timestep
from exporter.architectures._vae import vae_components, vae_factor
from exporter.architectures.base import Component, Size, TensorSpec
from exporter.checkpoints import Checkpoint

if TYPE_CHECKING:
    from exporter.artifact import TensorRecord

T5_TOKENS = 256
"""`max_sequence_length` of the pipelines."""
CLASS = "SD3Transformer2DModel"
PIPELINES = "StableDiffusion3"
"""What the names of the family's pipelines begin with."""


def components(checkpoint: Checkpoint) -> list[Component]:
    """`text_encoder`, `text_encoder_2`, `text_encoder_3` (where there is one), `transformer`, VAE.

    Raises:
        CheckpointError: A part is missing, of another class, or does not fit the others.
    """
    expect_class(checkpoint, "transformer", (CLASS,))
    lacking = checkpoint.lacking
    clips = [folder for folder in ("text_encoder", "text_encoder_2") if folder not in lacking]
    for folder in clips:
        expect_class(checkpoint, folder, (PROJECTED,))
    factor = vae_factor(part_config(checkpoint, "vae"))
    height, width = pixels(checkpoint.config("transformer")["sample_size"], factor)
    tokens = int(part_config(checkpoint, "text_encoder").get("max_position_embeddings", 77))

    def native(sequence: int) -> Size:
        return Size(batch=2, height=height, width=width, sequence=sequence, factor=factor)

    texts = [clip_text_encoder(checkpoint, folder, native(tokens), hidden_states=True) for folder in clips]
    if "text_encoder_3" in checkpoint.component_classes:
        texts.append(t5_text_encoder(checkpoint, "text_encoder_3", native(T5_TOKENS)))
    denoiser = _transformer(checkpoint, "transformer", native(tokens + T5_TOKENS), texts)
    autoencoder = [] if "vae" in lacking else vae_components(checkpoint, native(tokens))
    return [*texts, denoiser, *autoencoder]


def t5_tokens(inputs: Mapping[str, Sequence[TensorRecord]], clip: int) -> int | None:
    """`max_sequence_length` that makes a pipeline's text as long as an artifact's components take it.

    Args:
        inputs: Component → its inputs as the artifact declares them.
        clip: Tokens of the CLIP encoders, which precede T5's.

    Returns:
        None where the length is free, or nothing that tells it is among the components.
    """
    baked = {
        name: spec.dims[1]
        for name, specs in inputs.items()
        for spec in specs
        if spec.name == {"transformer": "encoder_hidden_states", "text_encoder_3": "input_ids"}.get(name)
    }
    joined, alone = baked.get("transformer"), baked.get("text_encoder_3")
    if isinstance(joined, int):
        return joined - clip
    return alone if isinstance(alone, int) else None


def _transformer(checkpoint: Checkpoint, folder: str, native: Size, texts: list[Component]) -> Component:
    config = checkpoint.config(folder)
    pooled, text = int(config["pooled_projection_dim"]), int(config["joint_attention_dim"])
    projected = [int(t.config["projection_dim"]) for t in texts if t.name != "text_encoder_3"]
    if len(projected) == 2:
        by = "the projections of the text encoders"
        expect_width(checkpoint, folder, "pooled_projection_dim", sum(projected), by)
    for encoder in texts:
        if encoder.name == "text_encoder_3":
            given = int(encoder.config["d_model"])
            expect_width(checkpoint, folder, "joint_attention_dim", given, "the tokens of text_encoder_3")
    channels = int(config["in_channels"])
    latent = ("latent_height", "latent_width")

    def construct() -> Any:
        from diffusers import SD3Transformer2DModel

        return SD3Transformer2DModel.from_config(config)

    return Component(
        name=folder,
        folder=folder,
        checkpoint=checkpoint,
        class_name=CLASS,
        inputs=(
            TensorSpec("hidden_states", "float32", ("batch", channels, *latent)),
            TensorSpec("encoder_hidden_states", "float32", ("batch", "sequence", text)),
            TensorSpec("pooled_projections", "float32", ("batch", pooled)),
            TensorSpec("timestep", "float32", ("batch",)),
        ),
        outputs=(
            TensorSpec(OUTPUT, "float32", ("batch", int(config.get("out_channels") or channels), *latent)),
        ),
        native=native,
        construct=construct,
        adapt=adapter("Transformer"),
        make_inputs={"timestep": timestep},
        rows=2,
        multiple=int(config["patch_size"]),
    )
