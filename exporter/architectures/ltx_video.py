"""LTX-Video: T5, a transformer over the cells of a whole clip, and an autoencoder that also halves time.

Latents are a row of tokens, a cell of a latent frame each; where a token is the transformer tells from three
numbers (latent frames, rows, columns) and the seconds and pixels that one cell stands for. The first latent
frame is one frame, each further one is `temporal` frames: clips have 8k + 1 frames.

A clip that begins with a picture (`LTXImageToVideoPipeline`) has the same modules, called in another
way: every token has a time of its own, 0 for those of the picture, and the encoder is given single frames.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from exporter.architectures._ltx_vae import CLASS as VAE
from exporter.architectures._ltx_vae import compression, video_vae_components
from exporter.architectures._parts import adapter, expect_class
from exporter.architectures._t5 import T5, prompt_mask, t5_text_encoder
from exporter.architectures._transformer import expect_width, timestep
from exporter.architectures.base import Component, Size, TensorSpec
from exporter.checkpoints import Checkpoint
from exporter.errors import CheckpointError
from exporter.frames import FROM_PICTURE

if TYPE_CHECKING:
    import torch

ENCODED = (
    "prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask",
)  # fmt: skip
"""The pipeline tells the transformer which tokens of the text are padding; the text encoder reads them."""
CLASS = "LTXVideoTransformer3DModel"
OUTPUT = "out_sample"
"""As optimum-intel names it."""
TOKENS = 128
"""`max_sequence_length` of the pipelines."""
FRAMES, FRAME_RATE = 161, 25
"""What the pipeline makes where nobody says otherwise; no config says it."""
CELLS_HIGH, CELLS_WIDE, LATENT_FRAMES = 4, 6, 3
"""The size at which components are traced and judged: small, for the pipeline's own is 161 frames of 512×704,
7392 cells to the 72 here."""


def components(checkpoint: Checkpoint) -> list[Component]:
    """`text_encoder`, `transformer`, `vae_decoder`, `vae_encoder`.

    Raises:
        CheckpointError: A part is missing, of another class, or does not fit the others.
    """
    expect_class(checkpoint, "transformer", (CLASS,))
    expect_class(checkpoint, "text_encoder", (T5,))
    expect_class(checkpoint, "vae", (VAE,))
    space, time = compression(checkpoint.config("vae"))
    native = Size(
        batch=2,
        height=CELLS_HIGH * space,
        width=CELLS_WIDE * space,
        sequence=TOKENS,
        factor=space,
        frames=(LATENT_FRAMES - 1) * time + 1,
        temporal=time,
    )
    text = replace(t5_text_encoder(checkpoint, "text_encoder", native), clip=FRAMES)
    denoiser = _transformer(checkpoint, "transformer", native, text)
    decoder, encoder = video_vae_components(checkpoint, native, FRAMES)
    if checkpoint.pipeline_class in FROM_PICTURE:
        encoder = _of_pictures(encoder)
    return [text, denoiser, decoder, encoder]


def _of_pictures(encoder: Component) -> Component:
    """The encoder as the pipeline calls it: one picture at a time, as a clip of one frame."""
    alone = {"batch": 1, "frames": 1, "latent_frames": 1}

    def fixed(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(
            replace(s, dims=tuple(alone.get(d, d) if isinstance(d, str) else d for d in s.dims))
            for s in specs
        )

    return replace(encoder, inputs=fixed(encoder.inputs), outputs=fixed(encoder.outputs))


def _transformer(checkpoint: Checkpoint, folder: str, native: Size, text: Component) -> Component:
    config = checkpoint.config(folder)
    channels = expect_width(
        checkpoint,
        folder,
        "in_channels",
        int(checkpoint.config("vae")["latent_channels"]),
        "the VAE's latents",
    )
    captions = expect_width(
        checkpoint, folder, "caption_channels", int(text.config["d_model"]), "the tokens of text_encoder"
    )
    for key in ("patch_size", "patch_size_t"):
        if int(config.get(key) or 1) != 1:
            raise CheckpointError(
                f"{checkpoint.source}, component {folder!r}: {key} is {config[key]}; diffusers' own pipeline "
                "gives places for single cells only, so there is nothing to compare with."
            )

    def construct() -> Any:
        from diffusers import LTXVideoTransformer3DModel

        return LTXVideoTransformer3DModel.from_config(config)

    tokens = ("batch", "video_tokens")
    begun = checkpoint.pipeline_class in FROM_PICTURE
    return Component(
        name=folder,
        folder=folder,
        checkpoint=checkpoint,
        class_name=CLASS,
        inputs=(
            TensorSpec("hidden_states", "float32", (*tokens, channels)),
            TensorSpec("encoder_hidden_states", "float32", ("batch", "sequence", captions)),
            TensorSpec("timestep", "float32", tokens if begun else ("batch",)),
            TensorSpec("encoder_attention_mask", "int64", ("batch", "sequence")),
            TensorSpec("num_frames", "int64", ()),
            TensorSpec("height", "int64", ()),
            TensorSpec("width", "int64", ()),
            # Of which angles are made, up to 15708 radians: as it is.
            TensorSpec("rope_interpolation_scale", "float32", (3,), exact=True),
        ),
        outputs=(TensorSpec(OUTPUT, "float32", (*tokens, int(config.get("out_channels") or channels))),),
        native=native,
        construct=construct,
        adapt=adapter("VideoTransformer"),
        make_inputs={
            "timestep": _times if begun else timestep,
            "encoder_attention_mask": prompt_mask,
            "num_frames": _count("latent_frames"),
            "height": _count("latent_height"),
            "width": _count("latent_width"),
            "rope_interpolation_scale": _scale,
        },
        rows=2,
        clip=FRAMES,
    )


def _count(dim: str) -> Any:
    def make(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
        import torch

        return torch.tensor(size.resolve(dim))

    return make


def _times(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
    """The scheduler's time for every token but those of the first latent frame: it is given, and has none."""
    made = timestep(spec, size, generator)
    made[:, : int(size.resolve("latent_height")) * int(size.resolve("latent_width"))] = 0
    return made


def _scale(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
    """Seconds per latent frame, pixels per row and per column."""
    import torch

    return torch.tensor([size.temporal / FRAME_RATE, float(size.factor), float(size.factor)])
