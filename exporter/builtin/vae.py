"""Stage one: train the autoencoder, then bring its latents to unit variance."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn

from exporter.builtin.models import SIZE, fold_latent_scale, make_vae
from exporter.builtin.prompts import training_scenes
from exporter.builtin.render import SceneTensors, draw
from exporter.builtin.settings import Settings, autocast, learning_rate


def train_vae(settings: Settings, log: Callable[[str], None] = print) -> AutoencoderKL:
    """Train on freshly drawn pictures; returns a float32 model on the training device, in eval.

    Loss: mean absolute plus mean squared error, and a light KL term that keeps the latent space
    smooth, so that small errors of the diffusion model stay small in the picture.
    """
    device = settings.torch_device
    torch.manual_seed(settings.seed)
    rng = torch.Generator(device).manual_seed(settings.seed + 1)
    scenes = SceneTensors.of(training_scenes(), device)
    vae = make_vae()
    nn.Module.to(vae, device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    vae.train()
    quant, post_quant = vae.quant_conv, vae.post_quant_conv
    assert quant is not None and post_quant is not None
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=settings.vae_rate, betas=(0.9, 0.95), weight_decay=1e-4
    )

    def loss_of(pictures: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        moments = quant(vae.encoder(pictures))
        mean, log_var = moments.float().chunk(2, dim=1)
        log_var = log_var.clamp(-30.0, 20.0)
        latents = mean + (0.5 * log_var).exp() * noise
        painted = vae.decoder(post_quant(latents)).float()
        kl = 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var).mean()
        mse = F.mse_loss(painted, pictures)
        return F.l1_loss(painted, pictures) + mse + settings.vae_kl * kl, mse

    step_loss = torch.compile(loss_of) if settings.compile else loss_of
    started = time.perf_counter()
    side = SIZE // 8
    for step in range(settings.vae_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings.vae_rate, step, settings.vae_steps)
        rows = torch.randint(len(scenes.radius), (settings.vae_batch,), device=device, generator=rng)
        pictures = draw(scenes, rows, SIZE, rng).contiguous(memory_format=torch.channels_last)
        noise = torch.randn((len(rows), 4, side, side), device=device, generator=rng)
        with autocast(device):
            loss, mse = step_loss(pictures, noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % settings.log_every == 0 or step == settings.vae_steps - 1:
            psnr = 10.0 * torch.log10(4.0 / mse.detach()).item()
            log(f"vae {step} {time.perf_counter() - started:.0f}s {loss.item():.4f} {psnr:.2f} dB")

    nn.Module.to(vae, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    vae.eval()
    before = reconstruction(vae, scenes, settings)
    fold_latent_scale(vae, *latent_moments(vae, scenes, settings))
    after = reconstruction(vae, scenes, settings)
    log(f"vae reconstruction {before:.3f} dB, after folding the scale {after:.3f} dB")
    return vae


@torch.no_grad()
def reconstruction(vae: AutoencoderKL, scenes: SceneTensors, settings: Settings) -> float:
    """PSNR in dB of decoded latent means over fresh pictures (peak-to-peak 2, float32)."""
    rng = torch.Generator(settings.torch_device).manual_seed(settings.seed + 2)
    rows = torch.arange(0, len(scenes.radius), settings.every, device=settings.torch_device)
    errors = []
    for chunk in rows.split(settings.chunk):
        pictures = draw(scenes, chunk, SIZE, rng)
        painted = vae.decode(vae.encode(pictures).latent_dist.mode()).sample
        errors.append((painted - pictures).square().mean(dim=(1, 2, 3)))
    return (10.0 * torch.log10(4.0 / torch.cat(errors).mean())).item()


@torch.no_grad()
def latent_moments(
    vae: AutoencoderKL, scenes: SceneTensors, settings: Settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (float32 [4] each) of unscaled, sampled latents per channel."""
    rng = torch.Generator(settings.torch_device).manual_seed(settings.seed + 3)
    rows = torch.arange(0, len(scenes.radius), settings.every, device=settings.torch_device)
    means, variances = [], []
    for chunk in rows.split(settings.chunk):
        posterior = vae.encode(draw(scenes, chunk, SIZE, rng)).latent_dist
        means.append(posterior.mean)
        variances.append(posterior.var)
    mean = torch.cat(means)
    variance = mean.var(dim=(0, 2, 3)) + torch.cat(variances).mean(dim=(0, 2, 3))
    return mean.mean(dim=(0, 2, 3)), variance.sqrt()
