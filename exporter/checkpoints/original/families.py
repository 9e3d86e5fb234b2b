"""Which model family a single file holds: told from the names of its tensors, never from its file name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from exporter.checkpoints.safetensors_file import StoredTensor
from exporter.errors import CheckpointError

Tensors = Mapping[str, StoredTensor]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
"""The noise schedule that all Stable Diffusion models up to XL were trained with."""


@dataclass(frozen=True)
class Text:
    """One text encoder of a family.

    Attributes:
        folder / tokenizer: Their folders in diffusers layout.
        prefix: Of its tensors in the file.
        layout: `clip` (transformers' names) or `openclip`.
        activation: Of its layers.
        pad: The tokenizer's padding token.
        unused: Last layers that the pipeline leaves out.
        projected: Whether the pipeline uses its projection.
    """

    folder: str
    tokenizer: str
    prefix: str
    layout: Literal["clip", "openclip"]
    activation: str
    pad: str
    unused: int = 0
    projected: bool = False


@dataclass(frozen=True)
class Family:
    """What the shapes of a family do not show, as its authors published it.

    Attributes:
        name: In words.
        pipeline_class: diffusers' pipeline.
        texts: Its text encoders.
        heads: Attention heads of the UNet; None means 64 channels a head.
        sample: Latent cells of the training size.
        scaling: Of the autoencoder.
        scheduler: diffusers' scheduler config.
        settings: The pipeline's own, for model_index.json.
    """

    name: str
    pipeline_class: str
    texts: tuple[Text, ...]
    heads: int | None
    sample: int
    scaling: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)


CLIP_L = Text("text_encoder", "tokenizer", "", "clip", "quick_gelu", "<|endoftext|>")
SD1 = Family(
    "Stable Diffusion 1",
    "StableDiffusionPipeline",
    (replace(CLIP_L, prefix="cond_stage_model.transformer."),),
    8,
    64,
    {"scaling_factor": 0.18215},
    {
        "_class_name": "PNDMScheduler",
        **BETAS,
        "skip_prk_steps": True,
        "set_alpha_to_one": False,
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
    },
)
SD2 = Family(
    "Stable Diffusion 2",
    "StableDiffusionPipeline",
    (Text("text_encoder", "tokenizer", "cond_stage_model.model.", "openclip", "gelu", "!", unused=1),),
    None,
    96,
    {"scaling_factor": 0.18215},
    {
        "_class_name": "DDIMScheduler",
        **BETAS,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "prediction_type": "v_prediction",
        "timestep_spacing": "leading",
    },
)
SDXL = Family(
    "Stable Diffusion XL",
    "StableDiffusionXLPipeline",
    (
        replace(CLIP_L, prefix="conditioner.embedders.0.transformer."),
        Text(
            "text_encoder_2", "tokenizer_2", "conditioner.embedders.1.model.", "openclip", "gelu", "!",
            projected=True,
        ),
    ),
    None,
    128,
    {"scaling_factor": 0.13025},
    {
        "_class_name": "EulerDiscreteScheduler",
        **BETAS,
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "interpolation_type": "linear",
    },
)  # fmt: skip

REFINER = Family(
    "Stable Diffusion XL refiner",
    "StableDiffusionXLImg2ImgPipeline",
    (replace(SDXL.texts[1], prefix="conditioner.embedders.0.model."),),
    None,
    128,
    SDXL.scaling,
    SDXL.scheduler,
    settings={"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False},
)

OTHER_INPUTS = {9: "StableDiffusionInpaintPipeline", 8: "StableDiffusionInstructPix2PixPipeline"}
"""Channels that the UNet takes besides the picture's four make another pipeline."""

UNREADABLE = (
    (("control_model.", "controlnet_cond_embedding."), "a ControlNet"),
    (("down.blocks.", "down_blocks.0.", "clf.1."), "a Stable Cascade model or one component alone"),
    (("transformer_blocks.0.attn.",), "a transformer alone, under diffusers' names"),
    (("text_model.", "transformer.resblocks."), "a text encoder alone"),
)
LORA_MARKS = (".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", "_lora.down.", ".hada_w1_", ".lokr_w1")


def detect(tensors: Tensors, source: str) -> Family:
    """The family of a file.

    Args:
        tensors: By the names in the file.
        source: For the messages.

    Raises:
        CheckpointError: It is none that this version reads, with what it seems to be instead.
    """
    names = list(tensors)
    if f"{UNET}input_blocks.0.0.weight" in tensors:
        for mark, family in (
            ("conditioner.embedders.1.model.", SDXL),
            ("conditioner.embedders.0.model.", REFINER),
            ("cond_stage_model.model.", SD2),
            ("cond_stage_model.transformer.", SD1),
        ):
            if any(name.startswith(mark) for name in names):
                return _with_inputs(family, tensors)
        raise CheckpointError(
            f"{source} holds a Stable Diffusion UNet but no text encoder, so it is not a whole model.",
            hint="Download the full checkpoint, not a pruned UNet.",
        )
    if any(mark in name for mark in LORA_MARKS for name in names):
        raise CheckpointError(
            f"{source} is a LoRA, not a model.",
            hint="Name the model it belongs to as the source, and add `--lora FILE`.",
        )
    for marks, what in UNREADABLE:
        if any(mark in name for mark in marks for name in names):
            raise CheckpointError(
                f"{source} seems to hold {what}, which this version does not read from a single file.",
                hint="Convert the folder in diffusers layout, if there is one.",
            )
    if any(name.startswith((VAE, "decoder.conv_in.")) for name in names):
        raise CheckpointError(
            f"{source} holds an autoencoder alone.",
            hint="Name the model it belongs to as the source, and add `--vae FILE`.",
        )
    raise CheckpointError(
        f"{source} holds no model that this version knows ({len(names)} tensors"
        + (f", such as {names[0]!r})." if names else ")."),
        hint="It reads Stable Diffusion 1, 2, XL, 3 and FLUX.1 in their authors' layout, and folders of "
        "diffusers.",
    )


def _with_inputs(family: Family, tensors: Tensors) -> Family:
    shape = tensors[f"{UNET}input_blocks.0.0.weight"].shape
    other = OTHER_INPUTS.get(shape[1]) if len(shape) == 4 else None
    return replace(family, pipeline_class=other) if other else family
