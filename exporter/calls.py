"""What pipelines of diffusers want of whoever calls them, where they differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

StepEnd = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]
"""diffusers' `callback_on_step_end`: (pipeline, step, timestep, tensors) → tensors to be taken instead."""


def watched(known: Mapping[str, Any], after_step: StepEnd) -> dict[str, Any]:
    """Arguments that call `after_step` after every step of the scheduler.

    Older pipelines (PixArt) have a `callback` that is given the latents alone, and takes nothing back.

    Args:
        known: Parameters of the pipeline's `__call__`.
    """
    if "callback_on_step_end" in known:
        return {"callback_on_step_end": after_step}

    def callback(step: int, timestep: Any, latents: Any) -> None:
        after_step(None, step, timestep, {"latents": latents})

    return {"callback": callback}


def texts(known: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Arguments of the calls of `encode_prompt` that encode a prompt: one, or one for each text encoder.

    Args:
        known: Parameters of the pipeline's `encode_prompt`.
    """
    if "text_encoder_index" in known:
        return [{"text_encoder_index": 0}, {"text_encoder_index": 1}]
    return [{}]


def at_the_size_asked_for(known: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that keep a pipeline from painting at a size of its own choice and scaling the result."""
    return {"use_resolution_binning": False} if "use_resolution_binning" in known else {}


def as_written(known: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that leave captions as they are where the packages that clean them are missing: pipelines do
    so too, but warn of it before every picture."""
    from diffusers.utils import is_bs4_available, is_ftfy_available

    cleans = "clean_caption" in known and not (is_bs4_available() and is_ftfy_available())
    return {"clean_caption": False} if cleans else {}
