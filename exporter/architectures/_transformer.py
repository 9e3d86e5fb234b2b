"""Diffusion transformers: what the families built on one share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from exporter.architectures.base import Size, TensorSpec
from exporter.checkpoints import Checkpoint
from exporter.errors import CheckpointError

if TYPE_CHECKING:
    import torch

OUTPUT = "out_hidden_states"
"""What optimum's transformers give, whatever the library calls it."""
SIZED = "use_style_cond_and_image_meta_size"
UNREAD = {SIZED: ("image_meta_size", "style")}
"""Settings of a transformer that, when off, leave inputs unread which its pipeline passes all the same."""


def unread(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What a pipeline passes to the transformer of this config and the transformer does not read."""
    return tuple(name for setting, names in UNREAD.items() if config.get(setting) is False for name in names)


def expect_width(checkpoint: Checkpoint, folder: str, key: str, given: int, by: str) -> int:
    """The transformer's own number, which must be the one that other parts of the checkpoint give.

    Args:
        key: In `config.json` of the transformer.
        given: What the checkpoint's other parts amount to.
        by: Who gives it, in words.

    Raises:
        CheckpointError: They differ: parts of two models.
    """
    wanted = int(checkpoint.config(folder)[key])
    if wanted != given:
        raise CheckpointError(
            f"{checkpoint.source}, component {folder!r}: the transformer wants {wanted} channels ({key}), "
            f"{by} of this checkpoint give {given}.",
            hint="Parts of two different models, or a text encoder that is missing from model_index.json.",
        )
    return wanted


def expect_latents(checkpoint: Checkpoint, folder: str) -> tuple[int, int]:
    """Channels that the transformer takes, which must be the latents', and gives: as many, or twice as many
    where it has learnt a variance too.

    Raises:
        CheckpointError: Others.
    """
    config = checkpoint.config(folder)
    channels = int(config["in_channels"])
    given = int(config.get("out_channels") or channels)
    latents = int(checkpoint.config("vae")["latent_channels"])
    if channels != latents or given not in (channels, 2 * channels):
        raise CheckpointError(
            f"{checkpoint.source}, component {folder!r}: the transformer takes {channels} channels and gives "
            f"{given}, the VAE's latents have {latents}.",
            hint="config.json of the transformer and of the VAE do not belong together.",
        )
    return channels, given


def timestep(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
    """The scheduler's time, 0 to 1000 and seldom whole: the same for every row."""
    import torch

    value = torch.rand((), generator=generator) * 1000
    return value.to(getattr(torch, spec.dtype)).expand(spec.shape(size)).contiguous()


def pixels(sample_size: Any, factor: int) -> tuple[int, int]:
    """(height, width) in pixels of a `sample_size` in latent cells."""
    height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
    return int(height) * factor, int(width) * factor
