"""The steps of DDIM for a checkpoint's `scheduler_config.json`. Needs NumPy and nothing of PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from exporter.errors import UnsupportedError, UsageError

KNOWN = (
    "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler",
    "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
)  # fmt: skip
"""All of them walk the same path from noise to picture, so DDIM does with the betas of any."""
PREDICTIONS = ("epsilon", "v_prediction", "sample")
ENDS_CLEAN = {"PNDMScheduler": False}
"""What a class takes for `set_alpha_to_one` where the config does not say; True of every other."""


class Steps(NamedTuple):
    """Numbers of each step, arrays of float32 (steps,).

    Attributes:
        times: What the UNet is told.
        now / then: How much of the picture, squared, is in the latents before and after the step.
    """

    times: Any
    now: Any
    then: Any


def ddim_steps(config: Mapping[str, Any], steps: int) -> Steps:
    """The steps, the noisiest first.

    Raises:
        UnsupportedError: A kind of scheduler for which DDIM's steps would be wrong.
        UsageError: More steps than the model was trained with, or none.
    """
    check(config)
    trained = int(config.get("num_train_timesteps", 1000))
    if not 1 <= steps <= trained:
        raise UsageError(f"{steps} steps; there are 1 to {trained}.")
    kept = kept_of(config, trained)
    stride = trained // steps
    times = _times(config, trained, steps)
    before = times - stride
    clean = bool(config.get("set_alpha_to_one", ENDS_CLEAN.get(str(config.get("_class_name")), True)))
    last = 1.0 if clean else kept[0]
    then = np.where(before >= 0, kept[np.maximum(before, 0)], last)
    return Steps(*(np.asarray(values, np.float32) for values in (times, kept[times], then)))


def check(config: Mapping[str, Any]) -> None:
    """
    Raises:
        UnsupportedError: A kind of scheduler for which DDIM's steps would be wrong.
    """
    name, kind = config.get("_class_name"), config.get("prediction_type", "epsilon")
    odd = None
    if name not in KNOWN:
        odd = f"scheduler is a {name}"
    elif kind not in PREDICTIONS:
        odd = f"UNet predicts {kind!r}"
    elif config.get("thresholding") or config.get("use_flow_sigmas"):
        odd = f"{name} uses thresholds or sigmas of flow matching"
    if odd is not None:
        raise UnsupportedError(
            f"This artifact's {odd}, which is not painted without PyTorch.", hint="`exporter run` paints it."
        )


def kept_of(config: Mapping[str, Any], trained: int) -> np.ndarray:
    """How much of the picture, squared, is left at each time of the training: float64 (trained,)."""
    first, last = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    kind = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        betas = np.asarray(config["trained_betas"], np.float64)
    elif kind == "linear":
        betas = np.linspace(first, last, trained)
    elif kind == "scaled_linear":
        betas = np.linspace(first**0.5, last**0.5, trained) ** 2
    elif kind == "squaredcos_cap_v2":
        bars = np.cos((np.arange(trained + 1) / trained + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - bars[1:] / bars[:-1], 0.999)
    else:
        raise UnsupportedError(f"This artifact's betas are {kind!r}, which is not painted without PyTorch.")
    kept: np.ndarray = np.cumprod(1 - betas)
    if config.get("rescale_betas_zero_snr"):
        roots = np.sqrt(kept)
        kept = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    return kept


def _times(config: Mapping[str, Any], trained: int, steps: int) -> np.ndarray:
    spacing = config.get("timestep_spacing", "leading")
    times: np.ndarray
    if spacing == "leading":
        times = np.arange(steps)[::-1] * (trained // steps) + int(config.get("steps_offset", 0))
    elif spacing == "trailing":
        times = np.round(np.arange(trained, 0, -trained / steps))[:steps] - 1
    elif spacing == "linspace":
        times = np.round(np.linspace(0, trained - 1, steps))[::-1]
    else:
        raise UnsupportedError(f"This artifact's steps are spaced {spacing!r}, which is not known here.")
    return np.clip(times, 0, trained - 1).astype(np.int64)


def ddim_step(config: Mapping[str, Any], found: Any, x: Any, now: Any, then: Any) -> Any:
    """Latents after a step.

    Args:
        found: What the UNet gave, float32 like `x`.
        x: Latents before.
        now / then: As `Steps` has them, of this step.
    """
    kind = config.get("prediction_type", "epsilon")
    if kind == "epsilon":
        noise, picture = found, (x - (1 - now) ** 0.5 * found) / now**0.5
    elif kind == "v_prediction":
        noise = now**0.5 * found + (1 - now) ** 0.5 * x
        picture = now**0.5 * x - (1 - now) ** 0.5 * found
    else:
        noise, picture = (x - now**0.5 * found) / (1 - now) ** 0.5, found
    if config.get("clip_sample"):
        edge = float(config.get("clip_sample_range", 1.0))
        picture = picture.clip(-edge, edge)
    return then**0.5 * picture + (1 - then) ** 0.5 * noise
