"""Stage two: train the text encoder and the UNet together on the autoencoder's latents."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from exporter.builtin.models import (
    SCALING,
    SIZE,
    make_scheduler,
    make_text_encoder,
    make_unet,
    parameter_count,
)
from exporter.builtin.prompts import Scene, training_scenes
from exporter.builtin.render import SceneTensors, draw
from exporter.builtin.settings import Settings, autocast, learning_rate

ATTRIBUTES = ("size", "colour", "place", "background")


class Conditioned(nn.Module):
    """Text encoder and UNet as one module: trained and averaged together."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Predicted noise [b, 4, h, w] for `noisy` latents, int64 `timesteps` and token ids."""
        text = self.text_encoder(tokens).last_hidden_state
        return self.unet(noisy, timesteps, encoder_hidden_states=text).sample


@torch.no_grad()
def encode_drawings(
    vae: AutoencoderKL, scenes: SceneTensors, settings: Settings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw every scene `settings.drawings` times and encode it.

    Returns mean and standard deviation of the scaled latents (float16 [n, 4, 16, 16] each, on
    the training device) and the scene of each (int64 [n]).
    """
    device = settings.torch_device
    rng = torch.Generator(device).manual_seed(settings.seed + 10)
    rows = torch.arange(0, len(scenes.radius), settings.every, device=device)
    rows = rows.repeat(settings.drawings)
    means, stds = [], []
    for chunk in rows.split(settings.chunk):
        with autocast(device):
            posterior = vae.encode(draw(scenes, chunk, SIZE, rng)).latent_dist
        means.append((posterior.mean.float() * SCALING).half())
        stds.append((posterior.std.float() * SCALING).half())
    return torch.cat(means), torch.cat(stds), rows


def prompt_table(
    scenes: Sequence[Scene], tokenizer: CLIPTokenizer, settings: Settings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids (int64): full prompts [n, 77], eight partial ones [n, 8, 77], the empty one [77].

    A partial prompt leaves at least one attribute out, so that "a red star" works too.
    """
    chooser = random.Random(settings.seed)

    def ids(texts: list[str]) -> torch.Tensor:
        out = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        return out.input_ids.to(settings.torch_device)

    partial = [
        scene.partial(frozenset(chooser.sample(ATTRIBUTES, chooser.randrange(len(ATTRIBUTES)))))
        for scene in scenes
        for _ in range(8)
    ]
    return ids([s.prompt for s in scenes]), ids(partial).view(len(scenes), 8, -1), ids([""])[0]


def train_diffusion(
    settings: Settings,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    log: Callable[[str], None] = print,
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Predict the noise (epsilon) under Stable Diffusion 1's schedule; returns averaged weights."""
    device = settings.torch_device
    torch.manual_seed(settings.seed + 20)
    rng = torch.Generator(device).manual_seed(settings.seed + 21)
    scenes = training_scenes()
    means, stds, rows = encode_drawings(vae, SceneTensors.of(scenes, device), settings)
    full, partial, empty = prompt_table(scenes, tokenizer, settings)
    alphas = make_scheduler().alphas_cumprod.to(device)
    log(f"latents {tuple(means.shape)} std {means.float().std().item():.3f}")

    model = Conditioned(make_text_encoder(tokenizer), make_unet()).to(device).train()
    average = copy.deepcopy(model).eval()
    averaged: list[torch.Tensor] = list(average.parameters())
    trained: list[torch.Tensor] = list(model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.rate, betas=(0.9, 0.99), weight_decay=1e-2)
    log(f"parameters {parameter_count(model)}")

    def uniform(count: int) -> torch.Tensor:
        return torch.rand(count, device=device, generator=rng)

    def batch() -> tuple[torch.Tensor, ...]:
        count = settings.batch
        picks = torch.randint(len(rows), (count,), device=device, generator=rng)
        shape = (count, *means.shape[1:])
        mean, std = means[picks].float(), stds[picks].float()
        latents = mean + std * torch.randn(shape, device=device, generator=rng)
        noise = torch.randn(shape, device=device, generator=rng)
        # One timestep from each of `count` equal slices: the same density, less variance.
        slices = (torch.arange(count, device=device) + uniform(count)) / count
        timesteps = (slices * len(alphas)).long().clamp(max=len(alphas) - 1)
        signal = alphas[timesteps].sqrt()[:, None, None, None]
        spread = (1.0 - alphas[timesteps]).sqrt()[:, None, None, None]
        where, chance = rows[picks], uniform(count)[:, None]
        variant = (uniform(count) * partial.shape[1]).long().clamp(max=partial.shape[1] - 1)
        some = settings.unconditional + settings.partial
        tokens = torch.where(chance < some, partial[where, variant], full[where])
        tokens = torch.where(chance < settings.unconditional, empty, tokens)
        return signal * latents + spread * noise, timesteps, tokens, noise

    started = time.perf_counter()
    running = torch.zeros((), device=device)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings.rate, step, settings.steps)
        noisy, timesteps, tokens, noise = batch()
        with autocast(device):
            guess = model(noisy, timesteps, tokens)
        loss = F.mse_loss(guess.float(), noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(settings.ema, (1.0 + step) / (10.0 + step))
        with torch.no_grad():
            torch._foreach_lerp_(averaged, trained, 1.0 - decay)
        running += loss.detach()
        if (step + 1) % settings.log_every == 0 or step == settings.steps - 1:
            done = step % settings.log_every + 1
            spent = time.perf_counter() - started
            log(f"diffusion {step + 1} {running.item() / done:.4f} {spent:.0f}s")
            running.zero_()
    return average.unet, average.text_encoder
