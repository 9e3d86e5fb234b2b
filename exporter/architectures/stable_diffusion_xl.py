"""Stable Diffusion XL: base, refiner, inpainting, and models distilled from them (Turbo, Lightning, LCM).

Two text encoders; the UNet takes the last but one hidden state of each, side by side, the second one's
pooled projection, and sizes and crops as numbers. The refiner has the second text encoder only, and an
aesthetic score instead of the target size.
"""

from __future__ import annotations

from exporter.architectures._parts import expect_class
from exporter.architectures._text import CLIP, PROJECTED, clip_text_encoder
from exporter.architectures._unet import native_size, unet
from exporter.architectures._vae import vae_components
from exporter.architectures.base import Component
from exporter.architectures.controlnet import controlnets, residuals_of
from exporter.architectures.ip_adapter import image_encoders, picture_inputs
from exporter.architectures.t2i_adapter import adapters, features_of
from exporter.checkpoints import Checkpoint


def components(checkpoint: Checkpoint) -> list[Component]:
    """`text_encoder` (not of a refiner), `text_encoder_2`, (`controlnet` …,) `unet`, and the two of the VAE.

    Raises:
        CheckpointError: A part is missing, of another class, or does not fit the others.
    """
    expect_class(checkpoint, "text_encoder_2", (PROJECTED,))
    expect_class(checkpoint, "unet", ("UNet2DConditionModel",))
    native = native_size(checkpoint, "text_encoder_2")
    texts = []
    if "text_encoder" in checkpoint.component_classes:
        expect_class(checkpoint, "text_encoder", (CLIP,))
        texts.append(clip_text_encoder(checkpoint, "text_encoder", native, hidden_states=True))
    texts.append(clip_text_encoder(checkpoint, "text_encoder_2", native, hidden_states=True))
    width = sum(int(text.config["hidden_size"]) for text in texts)
    pooled = int(texts[-1].config["projection_dim"])
    nets, small = controlnets(checkpoint, native, pooled=pooled), adapters(checkpoint, native)
    residuals = residuals_of(nets) + features_of(small)
    eyes = image_encoders(checkpoint, native)
    denoiser = unet(
        checkpoint, "unet", native, text_width=width, pooled=pooled, residuals=residuals,
        picture=picture_inputs(checkpoint, eyes),
    )  # fmt: skip
    return [*texts, *eyes, *nets, *small, denoiser, *vae_components(checkpoint, native)]
