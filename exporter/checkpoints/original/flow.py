"""Whether a file holds Stable Diffusion 3 or FLUX.1, and which: told from names and shapes alone.

What people have: the transformer alone, with or without `model.diffusion_model.` before its names; with an
autoencoder (`first_stage_model.` or `vae.`); with text encoders (`text_encoders.clip_l.transformer.` …).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from exporter.checkpoints.original import families, flux, sd3
from exporter.checkpoints.original.tables import Table
from exporter.checkpoints.safetensors_file import StoredTensor
from exporter.errors import CheckpointError

Tensors = Mapping[str, StoredTensor]

PREFIX = families.UNET
VAES = (families.VAE, "vae.")
TEXTS = "text_encoders."
BLOCK = re.compile(rf"^(?:{re.escape(PREFIX)})?(double_blocks|joint_blocks)\.\d")
SCALES = (".scale_weight", ".scale_input", ".weight_scale", ".input_scale", "scaled_fp8", ".weight_scale_2")
CODES = (".absmax", ".quant_map", ".nested_absmax")
OTHERS = (
    ("controlnet_", "a ControlNet"),
    ("distilled_guidance_layer.", "a Chroma model"),
    ("double_stream_modulation_img.", "a FLUX.2 model"),
    ("img_attn_qkv.", "a HunyuanVideo model"),
)
"""What else has blocks of these names."""

FLOW_MATCH = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
SHIFTS = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}


@dataclass(frozen=True)
class TextPart:
    """A text encoder of a family.

    Attributes:
        folder / tokenizer: Their folders in diffusers layout.
        prefix: Of its tensors.
        words: For messages.
        kind: transformers' class.
        activation: Of a CLIP encoder.
        pad: Padding token of a CLIP tokenizer.
        identity: The pipeline wants the pooled text as it is: its projection is the identity, whatever the
            file has under that name.
        optional: The pipeline works without.
    """

    folder: str
    tokenizer: str
    prefix: str
    words: str
    kind: str
    activation: str = ""
    pad: str = ""
    identity: bool = False
    optional: bool = False

    @property
    def t5(self) -> bool:
        return self.kind == "T5EncoderModel"


@dataclass(frozen=True)
class Flow:
    """One model of these families, as its authors published it.

    Attributes:
        name: In words.
        pipeline_class / transformer_class: diffusers' own.
        texts: Its text encoders.
        scheduler: diffusers' config.
        latents: What is known of its autoencoder.
        published: Hub id of the whole, for hints.
        infer / assume / table: Of the transformer.
        prefix / vae: Of the transformer's and the autoencoder's tensors in this file.
    """

    name: str
    pipeline_class: str
    transformer_class: str
    texts: tuple[TextPart, ...]
    scheduler: Mapping[str, Any]
    latents: Mapping[str, Any]
    published: str
    infer: Callable[[Tensors], dict[str, Any]]
    assume: Callable[[Mapping[str, Any]], tuple[dict[str, Any], str]]
    table: Callable[[Mapping[str, Any]], Table]
    prefix: str = ""
    vae: str = ""

    def transformer(self, tensors: Tensors) -> dict[str, StoredTensor]:
        """Its tensors, without prefix."""
        if self.prefix:
            return {n.removeprefix(self.prefix): t for n, t in tensors.items() if n.startswith(self.prefix)}
        return {n: t for n, t in tensors.items() if not n.startswith((*VAES, TEXTS, PREFIX))}

    def held(self, tensors: Tensors) -> list[str]:
        """Folders of the parts that the file has."""
        prefixes = {text.folder: text.prefix for text in self.texts}
        prefixes |= {"vae": self.vae} if self.vae else {}
        found = [f for f, p in prefixes.items() if any(name.startswith(p) for name in tensors)]
        return ["transformer", *found]


CLIP_L = TextPart(
    "text_encoder", "tokenizer", f"{TEXTS}clip_l.transformer.", "CLIP L", "CLIPTextModel", "quick_gelu",
    "<|endoftext|>",
)  # fmt: skip
CLIP_G = TextPart(
    "text_encoder_2", "tokenizer_2", f"{TEXTS}clip_g.transformer.", "CLIP G", "CLIPTextModelWithProjection",
    "gelu", "!",
)  # fmt: skip
T5 = TextPart(
    "text_encoder_2", "tokenizer_2", f"{TEXTS}t5xxl.transformer.", "T5", "T5EncoderModel"
)  # fmt: skip


def _latents(scaling: float, shift: float) -> dict[str, Any]:
    return {
        "latent_channels": 16,
        "block_out_channels": [128, 256, 512, 512],
        "sample_size": 1024,
        "scaling_factor": scaling,
        "shift_factor": shift,
    }


DEV = Flow(
    "FLUX.1 dev",
    "FluxPipeline",
    "FluxTransformer2DModel",
    (CLIP_L, T5),
    {**FLOW_MATCH, **SHIFTS, "shift": 3.0, "use_dynamic_shifting": True},
    _latents(0.3611, 0.1159),
    "black-forest-labs/FLUX.1-dev",
    flux.infer,
    flux.assume,
    flux.table,
)
SCHNELL = replace(
    DEV,
    name="FLUX.1 schnell",
    scheduler={**FLOW_MATCH, **SHIFTS, "shift": 1.0, "use_dynamic_shifting": False},
    published="black-forest-labs/FLUX.1-schnell",
)
FILL = replace(
    DEV,
    name="FLUX.1 Fill",
    pipeline_class="FluxFillPipeline",
    published="black-forest-labs/FLUX.1-Fill-dev",
)
SD3 = Flow(
    "Stable Diffusion 3",
    "StableDiffusion3Pipeline",
    "SD3Transformer2DModel",
    (
        replace(CLIP_L, kind="CLIPTextModelWithProjection", identity=True),
        CLIP_G,
        replace(T5, folder="text_encoder_3", tokenizer="tokenizer_3", optional=True),
    ),
    {**FLOW_MATCH, "shift": 3.0},
    _latents(1.5305, 0.0609),
    "stabilityai/stable-diffusion-3-medium-diffusers",
    sd3.infer,
    sd3.assume,
    sd3.table,
)
SD35 = replace(SD3, name="Stable Diffusion 3.5", published="stabilityai/stable-diffusion-3.5-large")
SD35_MEDIUM = replace(SD35, published="stabilityai/stable-diffusion-3.5-medium")

FILL_PARTS = 6
"""Channels of a token of FLUX.1 Fill to one of the picture: noise, masked picture, and 4 of the mask."""


def detect(tensors: Tensors, source: str) -> Flow | None:
    """The family and variant of a file; None where it is neither SD3 nor FLUX.

    Args:
        tensors: By the names in the file.
        source: For the messages.

    Raises:
        CheckpointError: It has their blocks but is another model, is incomplete, or is quantised in a way
            that this version does not read.
    """
    found = {match[1] for name in tensors if (match := BLOCK.match(name))}
    if not found or any(mark in name for mark in families.LORA_MARKS for name in tensors):
        return None
    for mark, what in OTHERS:
        if any(mark in name for name in tensors):
            raise CheckpointError(
                f"{source} seems to hold {what}, which this version does not read from a single file.",
                hint="Convert the folder in diffusers layout, if there is one.",
            )
    _check_plain(tensors, source)
    prefixed = any(name.startswith(PREFIX) and BLOCK.match(name) for name in tensors)
    flow = replace(
        SD3 if "joint_blocks" in found else DEV,
        prefix=PREFIX if prefixed else "",
        vae=next((v for v in VAES if any(name.startswith(v) for name in tensors)), ""),
    )
    shown = flow.infer(flow.transformer(tensors))
    if "joint_blocks" in found:
        if shown["qk_norm"] is None:
            return flow
        return _as(flow, SD35_MEDIUM if shown["dual_attention_layers"] else SD35)
    return _flux(flow, shown, source)


def _flux(flow: Flow, shown: Mapping[str, Any], source: str) -> Flow:
    channels, out = shown["in_channels"], shown["out_channels"]
    if channels == FILL_PARTS * out:
        return _as(flow, FILL)
    if channels == out:
        return flow if shown["guidance_embeds"] else _as(flow, SCHNELL)
    known = " (as FLUX.1 Depth and Canny)" if channels == 2 * out else ""
    raise CheckpointError(
        f"{source} is a FLUX.1 transformer that takes {channels} channels a token and gives {out}{known}; "
        f"this version converts those that take {out} or, as Fill, {FILL_PARTS * out}."
    )


def _as(flow: Flow, other: Flow) -> Flow:
    return replace(other, prefix=flow.prefix, vae=flow.vae)


def _check_plain(tensors: Tensors, source: str) -> None:
    """Weights are numbers, not codes that need a scale beside them."""
    for marks, what in (
        (SCALES, "float8 weights with scales beside them"),
        (CODES, "weights in 4 or 8 bits"),
    ):
        example = next((name for name in tensors if name.endswith(marks)), None)
        if example is not None:
            raise CheckpointError(
                f"{source} holds {what} ({example[:200]!r}), which this version does not read.",
                hint="Take the file of the same model in bfloat16, float16 or plain float8 (e4m3fn).",
            )
