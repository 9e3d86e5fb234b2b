"""FLUX.1: dev (the guidance scale is an embedding), schnell (has none), and Fill (repaints a part).

CLIP gives the pooled text, T5 the tokens. The transformer takes latents as a row of tokens, 2×2 cells each,
and tells their places from `img_ids`; there is no second pass for guidance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporter.architectures._parts import adapter, expect_class, part_config
from exporter.architectures._t5 import T5, t5_text_encoder
from exporter.architectures._text import CLIP, clip_text_encoder
from exporter.architectures._transformer import OUTPUT, expect_width
from exporter.architectures._vae import vae_components, vae_factor
from exporter.architectures.base import PACKED, Component, Size, TensorSpec
from exporter.checkpoints import Checkpoint
from exporter.errors import CheckpointError

if TYPE_CHECKING:
    import torch

ENCODED = ("prompt_embeds", "pooled_prompt_embeds")
"""`encode_prompt` returns the ids of the text's tokens besides, which the pipeline makes again by itself."""
CLASS = "FluxTransformer2DModel"
T5_TOKENS = 512
"""`max_sequence_length` of the pipelines."""
DEFAULT_PIXELS = 1024


def components(checkpoint: Checkpoint) -> list[Component]:
    """`text_encoder`, `text_encoder_2`, `transformer`, `vae_decoder`, `vae_encoder`.

    Raises:
        CheckpointError: A part is missing, of another class, or does not fit the others.
    """
    lacking = checkpoint.lacking
    for part, class_name in (("transformer", CLASS), ("text_encoder", CLIP), ("text_encoder_2", T5)):
        if part not in lacking:
            expect_class(checkpoint, part, (class_name,))
    vae = part_config(checkpoint, "vae")
    side = int(vae.get("sample_size") or DEFAULT_PIXELS)
    tokens = int(part_config(checkpoint, "text_encoder").get("max_position_embeddings", 77))

    def native(sequence: int) -> Size:
        return Size(batch=1, height=side, width=side, sequence=sequence, factor=vae_factor(vae))

    texts = []
    if "text_encoder" not in lacking:
        texts.append(clip_text_encoder(checkpoint, "text_encoder", native(tokens)))
    if "text_encoder_2" not in lacking:
        texts.append(t5_text_encoder(checkpoint, "text_encoder_2", native(T5_TOKENS)))
    denoiser = _transformer(checkpoint, "transformer", native(T5_TOKENS), {c.name: c for c in texts})
    autoencoder = [] if "vae" in lacking else vae_components(checkpoint, native(tokens))
    return [*texts, denoiser, *autoencoder]


def _transformer(checkpoint: Checkpoint, folder: str, native: Size, texts: dict[str, Component]) -> Component:
    config = checkpoint.config(folder)
    pooled, text = int(config["pooled_projection_dim"]), int(config["joint_attention_dim"])
    if clip := texts.get("text_encoder"):
        given = int(clip.config["hidden_size"])
        expect_width(checkpoint, folder, "pooled_projection_dim", given, "the pooled text of text_encoder")
    if t5 := texts.get("text_encoder_2"):
        given = int(t5.config["d_model"])
        expect_width(checkpoint, folder, "joint_attention_dim", given, "the tokens of text_encoder_2")
    channels = int(config["in_channels"])
    given = int(config.get("out_channels") or channels)
    latents = int(part_config(checkpoint, "vae")["latent_channels"]) * PACKED**2
    if given != latents:
        raise CheckpointError(
            f"{checkpoint.source}, component {folder!r}: the transformer gives {given} channels a token, the "
            f"VAE's latents have {latents}.",
            hint="config.json of the transformer and of the VAE do not belong together.",
        )
    inputs = [
        TensorSpec("hidden_states", "float32", ("batch", "image_tokens", channels)),
        TensorSpec("encoder_hidden_states", "float32", ("batch", "sequence", text)),
        TensorSpec("pooled_projections", "float32", ("batch", pooled)),
        TensorSpec("timestep", "float32", ("batch",)),
        # Places, of which sines are taken: whole numbers, as they are.
        TensorSpec("img_ids", "float32", ("image_tokens", 3), exact=True),
        TensorSpec("txt_ids", "float32", ("sequence", 3), exact=True),
    ]
    if config.get("guidance_embeds"):
        inputs.append(TensorSpec("guidance", "float32", ("batch",)))

    def construct() -> Any:
        from diffusers import FluxTransformer2DModel

        return FluxTransformer2DModel.from_config(config)

    return Component(
        name=folder,
        folder=folder,
        checkpoint=checkpoint,
        class_name=CLASS,
        inputs=tuple(inputs),
        outputs=(TensorSpec(OUTPUT, "float32", ("batch", "image_tokens", given)),),
        native=native,
        construct=construct,
        adapt=adapter("Transformer"),
        make_inputs={"timestep": _time, "guidance": _guidance, "img_ids": places, "txt_ids": _no_places},
        multiple=PACKED,
    )


def places(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
    """(0, row, column) of every token of a picture."""
    import torch

    wide = size.width // size.factor // PACKED
    number = torch.arange(spec.shape(size)[0])
    return torch.stack([torch.zeros_like(number), number // wide, number % wide], dim=1).float()


def _no_places(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
    import torch

    return torch.zeros(spec.shape(size))


def _time(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
    """The noise's share, 0 to 1: the same for every row."""
    import torch

    return torch.rand((), generator=generator).expand(spec.shape(size)).contiguous()


def _guidance(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
    import torch

    return (1 + 6 * torch.rand((), generator=generator)).expand(spec.shape(size)).contiguous()
