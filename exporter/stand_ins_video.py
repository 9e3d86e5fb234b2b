"""Stands for the autoencoder of a video model, and computes in another runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from exporter.architectures._ltx_vae import CLASS, STATISTICS, compression
from exporter.errors import ArtifactError
from exporter.stand_ins import ExportedModule
from exporter.targets import Runner

__all__ = ["CLASS", "ExportedVideoVae", "with_statistics"]


class ExportedVideoVae(ExportedModule):
    """Stands for an `AutoencoderKLLTXVideo`; decoder and encoder are two components."""

    def __init__(self, decoder: Runner, encoder: Runner | None, config: Mapping[str, Any]) -> None:
        super().__init__(decoder, config)
        self.encoder_runner = encoder
        self.spatial_compression_ratio, self.temporal_compression_ratio = compression(dict(config))
        for name in STATISTICS:
            self.register_buffer(name, torch.tensor(config[f"{name}_data"], dtype=torch.float32))

    def decode(self, z: torch.Tensor, temb: torch.Tensor | None = None, return_dict: bool = True) -> Any:
        """Latents `[batch, channel, frames, height, width]` as a clip in [-1, 1]."""
        from diffusers.models.autoencoders.vae import DecoderOutput

        given = {"latent_sample": z} | ({} if temb is None else {"timestep": temb})
        (clip,) = self.call(self.runner, **given)
        return DecoderOutput(sample=clip) if return_dict else (clip,)

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        """A clip in [-1, 1] as a distribution of latents."""
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
        from diffusers.models.modeling_outputs import AutoencoderKLOutput

        if self.encoder_runner is None:
            raise ArtifactError("This artifact has no vae_encoder, so it cannot start from a picture.")
        (moments,) = self.call(self.encoder_runner, sample=x)
        posterior = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)


def with_statistics(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The config with the mean and deviation of latents, which lie among the weights where it has none.

    Args:
        folder: The autoencoder's in the artifact.
    """
    found = dict(config)
    for name, default in STATISTICS.items():
        key = f"{name}_data"
        if key not in found:
            stored = _stored(folder, name)
            found[key] = [default] * int(config["latent_channels"]) if stored is None else stored
    return found


def _stored(folder: Path, name: str) -> list[float] | None:
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            if name in file.keys():  # noqa: SIM118 - a handle, no dict
                values: list[float] = file.get_tensor(name).float().tolist()
                return values
    return None
