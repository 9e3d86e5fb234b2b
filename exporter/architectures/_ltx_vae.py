"""The causal video autoencoder of LTX-Video as two components, decoder and encoder.

From 0.9.1 on the decoder removes the last of the noise itself: it takes a timestep. Some versions add noise
of their own in the decoder; what they give is another clip each time, and is not converted.
"""

from __future__ import annotations

from typing import Any

from exporter.architectures._parts import adapter
from exporter.architectures.base import Component, Size, TensorSpec
from exporter.checkpoints import Checkpoint
from exporter.errors import CheckpointError

CLASS = "AutoencoderKLLTXVideo"
STATISTICS = {"latents_mean": 0.0, "latents_std": 1.0}
"""Of latents by channel: buffers of the autoencoder, and what they are in one that has none."""


def compression(config: dict[str, Any]) -> tuple[int, int]:
    """(pixels per latent cell, frames per latent frame after the first)."""
    halvings = 2 ** sum(
        bool(each) for each in config.get("spatio_temporal_scaling", (True, True, True, False))
    )
    space = config.get("spatial_compression_ratio") or int(config.get("patch_size", 4)) * halvings
    time = config.get("temporal_compression_ratio") or int(config.get("patch_size_t", 1)) * halvings
    return int(space), int(time)


def video_vae_components(checkpoint: Checkpoint, native: Size, clip: int) -> list[Component]:
    """`vae_decoder` and `vae_encoder` of the folder `vae`.

    Args:
        clip: Frames of a clip where nobody says how many.

    Raises:
        CheckpointError: The decoder adds noise of its own.
    """
    config = checkpoint.config("vae")
    if any(config.get("decoder_inject_noise") or ()):
        raise CheckpointError(
            f"{checkpoint.source}, component 'vae': the decoder adds noise itself (decoder_inject_noise): "
            "it gives another clip each time, and nothing can be compared.",
            hint="Convert a version of LTX-Video whose decoder does not, such as 0.9.0 or 0.9.5.",
        )
    return [_decoder(checkpoint, config, native, clip), _encoder(checkpoint, config, native, clip)]


def _decoder(checkpoint: Checkpoint, config: dict[str, Any], native: Size, clip: int) -> Component:
    inputs = [_latents(config, "latent_sample")]
    if config.get("timestep_conditioning"):
        inputs.append(TensorSpec("timestep", "float32", ("batch",)))

    def published() -> dict[str, Any]:
        """Under the names by which optimum-intel and OpenVINO GenAI read them."""
        stored = checkpoint.stored("vae")
        channels = int(config["latent_channels"])
        numbers = {
            f"{name}_data": stored[name].load().float().tolist() if name in stored else [default] * channels
            for name, default in STATISTICS.items()
        }
        return {**numbers, **_halvings(config)}

    return Component(
        name="vae_decoder",
        folder="vae",
        checkpoint=checkpoint,
        class_name=CLASS,
        inputs=tuple(inputs),
        outputs=(_clip(config, "out_channels"),),
        native=native,
        construct=lambda: _construct(config),
        adapt=adapter("VideoVaeDecoder"),
        used=("decoder.",),
        make_inputs={"timestep": _time},
        clip=clip,
        published=published,
    )


def _halvings(config: dict[str, Any]) -> dict[str, Any]:
    """`spatio_temporal_scaling` with as many halvings as the scale has, where those two differ.

    Both clients take the encoder's blocks for halvings of space and time alike, which from 0.9.5 on some are
    not, and do not read `spatial_compression_ratio`. It says nothing of the decoder.
    """
    space, time = compression(config)
    blocks = list(config.get("spatio_temporal_scaling", (True, True, True, False)))
    for count in range(len(blocks) + 1):
        patches = (int(config.get("patch_size", 4)), int(config.get("patch_size_t", 1)))
        if sum(blocks) != count and tuple(patch * 2**count for patch in patches) == (space, time):
            return {"spatio_temporal_scaling": [place < count for place in range(len(blocks))]}
    return {}


def _encoder(checkpoint: Checkpoint, config: dict[str, Any], native: Size, clip: int) -> Component:
    return Component(
        name="vae_encoder",
        folder="vae",
        checkpoint=checkpoint,
        class_name=CLASS,
        inputs=(_clip(config, "in_channels"),),
        outputs=(_latents(config, "latent_parameters", times=2),),
        native=native,
        construct=lambda: _construct(config),
        adapt=adapter("VaeEncoder"),
        used=("encoder.",),
        make_inputs={"sample": _frames},
        clip=clip,
    )


def _latents(config: dict[str, Any], name: str, times: int = 1) -> TensorSpec:
    channels = times * int(config["latent_channels"])
    return TensorSpec(name, "float32", ("batch", channels, "latent_frames", "latent_height", "latent_width"))


def _clip(config: dict[str, Any], key: str) -> TensorSpec:
    return TensorSpec("sample", "float32", ("batch", int(config.get(key, 3)), "frames", "height", "width"))


def _construct(config: dict[str, Any]) -> Any:
    from diffusers import AutoencoderKLLTXVideo

    return AutoencoderKLLTXVideo.from_config(config)


def _frames(spec: TensorSpec, size: Size, generator: Any) -> Any:
    import torch

    return torch.rand(spec.shape(size), generator=generator) * 2 - 1


def _time(spec: TensorSpec, size: Size, generator: Any) -> Any:
    """The share of noise that the decoder is told of, 0 to 0.1: the same for every row."""
    import torch

    return (torch.rand((), generator=generator) / 10).expand(spec.shape(size)).contiguous()
