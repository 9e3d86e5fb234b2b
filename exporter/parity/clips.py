"""What is different where a run paints clips: decoding, measuring all frames at once, other clips to try."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from exporter.parity.arithmetic import Tensors

if TYPE_CHECKING:
    import numpy as np

    from exporter.architectures.base import Component
    from exporter.parity.painting import Plan

DECODE_TIMESTEP = 0.05
"""Of decoders that remove the last noise: what the model cards of LTX-Video recommend."""
Wanted = tuple[str, str, dict[str, int]]


def decoded(pipeline: Any, plan: Plan, latents: torch.Tensor, decoder: Component) -> torch.Tensor:
    """The clips of a run's last latents, as the pipeline decodes them, but for noise it may add before that.

    Args:
        latents: `[batch, video_tokens, channel]`.
        decoder: Its `published` numbers scale the latents: the pipeline's own autoencoder has no weights.

    Returns:
        `[batch, 3, frames, height, width]` in [-1, 1].
    """
    space, time = pipeline.vae_spatial_compression_ratio, pipeline.vae_temporal_compression_ratio
    cells = pipeline._unpack_latents(
        latents, (plan.frames - 1) // time + 1, plan.height // space, plan.width // space
    )
    numbers = decoder.published()
    cells = pipeline._denormalize_latents(
        cells,
        torch.tensor(numbers["latents_mean_data"]),
        torch.tensor(numbers["latents_std_data"]),
        pipeline.vae.config.scaling_factor,
    )
    moment = None
    if any(spec.name == "timestep" for spec in decoder.inputs):
        moment = torch.full((len(cells),), DECODE_TIMESTEP)
    clip: torch.Tensor = pipeline.vae.decode(cells, moment, return_dict=False)[0]
    return clip


def in_one(picture: torch.Tensor) -> torch.Tensor:
    """`[channel, height, width]`: a picture as it is, the frames of a clip one below the other, so that what
    is measured of a picture is measured of all frames at once."""
    return picture.flatten(1, 2) if picture.dim() == 4 else picture


def frames_of(picture: torch.Tensor) -> int:
    return int(picture.shape[1]) if picture.dim() == 4 else 1


def strip(values: np.ndarray, frames: int) -> np.ndarray:
    """To be looked at: the first, the middle and the last frame side by side; a picture as it is.

    Args:
        values: `[frames * height, width, channel]`.
    """
    import numpy as np

    if frames == 1:
        return values
    each = values.reshape(frames, -1, *values.shape[1:])
    return np.concatenate([each[i] for i in dict.fromkeys((0, frames // 2, frames - 1))], axis=1)


def other_lengths(component: Component, now: dict[str, int], symbols: set[str]) -> list[Wanted]:
    """Of the autoencoder's halves: clips one latent frame longer, and single frames."""
    found: list[Wanted] = []
    for dim, step in (("latent_frames", 1), ("frames", component.native.temporal)):
        if dim in now and dim in symbols:
            words = dim.replace("_", " ")
            for count in (1, now[dim] + step):
                if count != now[dim]:
                    found.append(("frames", f"{count} {words} instead of {now[dim]}", {dim: count}))
    return found


def other_clips(tensors: Tensors) -> list[tuple[str, str, Tensors]]:
    """Of the transformer, whose tokens are in a row: a latent frame more, another aspect, slower frames.

    Returns:
        Kind, label and inputs of each.
    """
    frames, height, width = (int(tensors[name]) for name in ("num_frames", "height", "width"))
    result = []
    for kind, wanted in (
        ("frames", (frames + 1, height, width)),
        ("aspect", (frames, height + 1, max(width - 2, 1))),
    ):
        count = wanted[0] * wanted[1] * wanted[2]
        states = tensors["hidden_states"]
        index = torch.arange(count) % states.shape[1]
        changed = {
            name: torch.tensor(n) for name, n in zip(("num_frames", "height", "width"), wanted, strict=True)
        }
        label = "{}×{}×{} instead of {}×{}×{} cells".format(*wanted, frames, height, width)
        changed["hidden_states"] = states.index_select(1, index)
        if tensors["timestep"].dim() > 1:  # a time for every token
            changed["timestep"] = tensors["timestep"].index_select(1, index)
        result.append((kind, label, tensors | changed))
    scale = tensors["rope_interpolation_scale"].clone()
    scale[0] = scale[0] * 2
    slower = tensors | {"rope_interpolation_scale": scale}
    result.append(("rate", f"{float(scale[0]):g} seconds a latent frame, twice as many", slower))
    return result
