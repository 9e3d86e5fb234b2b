"""Stable Diffusion 1.x and 2.x: CLIP text encoder, UNet2DConditionModel, AutoencoderKL.

The versions differ in their configs only (OpenCLIP's text encoder, heads of 64 channels, linear
projections, a scheduler that predicts v); so do inpainting (a UNet of nine input channels) and latent
consistency models (a UNet that takes the guidance scale as an embedding). With a ControlNet the UNet also
takes what that makes of a picture.
"""

from __future__ import annotations

from exporter.architectures._parts import expect_class
from exporter.architectures._text import CLIP, clip_text_encoder
from exporter.architectures._unet import native_size, unet
from exporter.architectures._vae import vae_components
from exporter.architectures.base import Component
from exporter.architectures.controlnet import controlnets, residuals_of
from exporter.architectures.ip_adapter import image_encoders, picture_inputs
from exporter.architectures.safety_checker import safety_checkers
from exporter.architectures.t2i_adapter import adapters, features_of
from exporter.checkpoints import Checkpoint


def components(checkpoint: Checkpoint) -> list[Component]:
    """`text_encoder`, (`image_encoder`, `controlnet` …,) `unet`, the two of the VAE, (`safety_checker`): as
    they are used.

    Raises:
        CheckpointError: A part is missing, of another class, or does not fit the others.
    """
    expect_class(checkpoint, "text_encoder", (CLIP,))
    expect_class(checkpoint, "unet", ("UNet2DConditionModel",))
    native = native_size(checkpoint, "text_encoder")
    text = clip_text_encoder(checkpoint, "text_encoder", native)
    width = int(text.config["hidden_size"])
    nets, small = controlnets(checkpoint, native), adapters(checkpoint, native)
    residuals = residuals_of(nets) + features_of(small)
    eyes = image_encoders(checkpoint, native)
    picture = picture_inputs(checkpoint, eyes)
    denoiser = unet(checkpoint, "unet", native, text_width=width, residuals=residuals, picture=picture)
    checkers = safety_checkers(checkpoint, native)
    return [text, *eyes, *nets, *small, denoiser, *vae_components(checkpoint, native), *checkers]
