"""The numbers of a training run, and the few helpers that both stages share."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Settings:
    """A training run; the defaults are those of the checkpoint in the package."""

    seed: int = 0
    device: str = "cuda"
    compile: bool = True  # the autoencoder's step; the UNet's many shapes compile too slowly to pay
    log_every: int = 100

    vae_steps: int = 2000
    vae_batch: int = 160
    vae_rate: float = 1e-3
    vae_kl: float = 1e-4

    steps: int = 4200
    batch: int = 512
    rate: float = 1e-3
    ema: float = 0.999
    drawings: int = 64  # jittered drawings of each scene whose latents are kept on the device
    unconditional: float = 0.1  # fraction of empty prompts
    partial: float = 0.1  # fraction of prompts that leave attributes out

    chunk: int = 256  # pictures encoded or decoded at once
    every: int = 1  # take every n-th scene (of the cache and of measurements; for smoke tests)

    @property
    def torch_device(self) -> torch.device:
        """The training device."""
        return torch.device(self.device)


def autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """bfloat16 autocast on a GPU; plain float32 on the CPU, where it would not pay."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def learning_rate(peak: float, step: int, steps: int, warmup: int = 150) -> float:
    """Linear warm-up, then half a cosine down to one percent of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * done)))
