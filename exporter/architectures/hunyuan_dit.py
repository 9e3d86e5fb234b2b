"""HunyuanDiT: BERT and T5 read the prompt; the second half of a transformer looks back at the first.

Both texts have the lengths that are trained into the transformer. The pipeline gives it rotary positions, as
cosines and sines of every patch, and up to 1.1 the picture's size and a style; 1.2 leaves these out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporter.architectures._bert import bert_text_encoder
from exporter.architectures._parts import adapter, expect_class
from exporter.architectures._t5 import prompt_mask, t5_text_encoder
from exporter.architectures._transformer import OUTPUT, SIZED, expect_width, pixels, timestep
from exporter.architectures._vae import vae_components, vae_factor
from exporter.architectures.base import PACKED, Component, Size, TensorSpec
from exporter.checkpoints import Checkpoint
from exporter.errors import CheckpointError

if TYPE_CHECKING:
    import torch

ENCODED = (
    "prompt_embeds", "negative_prompt_embeds", "prompt_attention_mask", "negative_prompt_attention_mask",
    "prompt_embeds_2", "negative_prompt_embeds_2",
    "prompt_attention_mask_2", "negative_prompt_attention_mask_2",
)  # fmt: skip
CLASS = "HunyuanDiT2DModel"
TOKENS = {"text_len": 77, "text_len_t5": 256}
"""What the pipeline pads prompts to, under the names of the transformer's config."""
FACTOR = 8
"""Pixels of a latent cell; the pipeline counts with no other."""
TRAINED = 512
"""Pixels a side of the picture whose positions are whole numbers; the pipeline squeezes others into it."""


def components(checkpoint: Checkpoint) -> list[Component]:
    """`text_encoder`, `text_encoder_2`, `transformer`, `vae_decoder`, `vae_encoder`.

    Raises:
        CheckpointError: A part is missing, of another class, or does not fit the others.
    """
    expect_class(checkpoint, "transformer", (CLASS,))
    factor = vae_factor(checkpoint.config("vae"))
    config = checkpoint.config("transformer")
    for name, found, wanted in (
        *((key, int(config.get(key, length)), length) for key, length in TOKENS.items()),
        ("patch_size", int(config["patch_size"]), PACKED),
        ("learn_sigma", bool(config.get("learn_sigma", True)), True),
        ("pixels in a latent cell", factor, FACTOR),
    ):
        if found != wanted:
            raise CheckpointError(
                f"{checkpoint.source}, component 'transformer': {name} is {found}; "
                f"a {checkpoint.pipeline_class} works with {wanted} only."
            )
    height, width = pixels(config["sample_size"], factor)

    def native(tokens: int) -> Size:
        return Size(batch=2, height=height, width=width, sequence=tokens, factor=factor)

    text = bert_text_encoder(checkpoint, "text_encoder", native(TOKENS["text_len"]))
    text_2 = t5_text_encoder(checkpoint, "text_encoder_2", native(TOKENS["text_len_t5"]), mask=True)
    denoiser = _transformer(checkpoint, "transformer", native(TOKENS["text_len_t5"]), text, text_2)
    return [text, text_2, denoiser, *vae_components(checkpoint, native(TOKENS["text_len"]))]


def _transformer(
    checkpoint: Checkpoint, folder: str, native: Size, text: Component, text_2: Component
) -> Component:
    config = checkpoint.config(folder)
    given = int(text.config["hidden_size"])
    width = expect_width(checkpoint, folder, "cross_attention_dim", given, "the tokens of text_encoder")
    given = int(text_2.config["d_model"])
    width_2 = expect_width(
        checkpoint, folder, "cross_attention_dim_t5", given, "the tokens of text_encoder_2"
    )
    given = int(checkpoint.config("vae")["latent_channels"])
    channels = expect_width(checkpoint, folder, "in_channels", given, "the latents of vae")
    head = int(config["attention_head_dim"])
    tokens, tokens_2 = TOKENS.values()
    latent = ("latent_height", "latent_width")
    inputs = [
        TensorSpec("hidden_states", "float32", ("batch", channels, *latent)),
        TensorSpec("timestep", "float32", ("batch",)),
        TensorSpec("encoder_hidden_states", "float32", ("batch", tokens, width)),
        TensorSpec("text_embedding_mask", "int64", ("batch", tokens)),
        TensorSpec("encoder_hidden_states_t5", "float32", ("batch", tokens_2, width_2)),
        TensorSpec("text_embedding_mask_t5", "int64", ("batch", tokens_2)),
        TensorSpec("image_rotary_emb_0", "float32", ("image_tokens", head), exact=True),
        TensorSpec("image_rotary_emb_1", "float32", ("image_tokens", head), exact=True),
    ]
    if config.get(SIZED, True):  # pixels, of which sines are taken: as they are
        inputs.append(TensorSpec("image_meta_size", "float32", ("batch", 6), exact=True))
        inputs.append(TensorSpec("style", "int64", ("batch",)))

    def construct() -> Any:
        from diffusers import HunyuanDiT2DModel

        return HunyuanDiT2DModel.from_config(config)

    return Component(
        name=folder,
        folder=folder,
        checkpoint=checkpoint,
        class_name=CLASS,
        inputs=tuple(inputs),
        outputs=(TensorSpec(OUTPUT, "float32", ("batch", 2 * channels, *latent)),),
        native=native,
        construct=construct,
        adapt=adapter("HunyuanTransformer", room="_adapters_more"),
        make_inputs={
            "timestep": timestep,
            "text_embedding_mask": prompt_mask,
            "text_embedding_mask_t5": prompt_mask,
            "image_rotary_emb_0": lambda spec, size, generator: _rotary(head, size)[0],
            "image_rotary_emb_1": lambda spec, size, generator: _rotary(head, size)[1],
            "image_meta_size": _meta_size,
            "style": _style,
        },
        rows=2,
        multiple=PACKED,
    )


def _rotary(head: int, size: Size) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines `[image_tokens, head]` of every patch, as the pipeline counts them."""
    from diffusers.models.embeddings import get_2d_rotary_pos_embed
    from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

    cells = FACTOR * PACKED
    grid = (size.height // cells, size.width // cells)
    crop = get_resize_crop_region_for_grid(grid, TRAINED // cells)
    cosines, sines = get_2d_rotary_pos_embed(head, crop, grid, output_type="pt")
    return cosines, sines


def _meta_size(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
    """The size pictures were trained at, the size asked for (height, width), and where it is cut from."""
    import torch

    row = torch.tensor([[1024, 1024, size.height, size.width, 0, 0]])
    return row.float().expand(spec.shape(size)).contiguous()


def _style(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
    """There is one style."""
    import torch

    return torch.zeros(spec.shape(size), dtype=torch.int64)
