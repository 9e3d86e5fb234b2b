"""Trains the embedded checkpoint from nothing: `python -m exporter.builtin.train`.

Everything random is seeded. On the CPU two runs give the same bytes; on a GPU the kernels of
another driver, chip or PyTorch may round differently, so weights agree in quality, not in bits.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import fields, replace
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from exporter.builtin import path
from exporter.builtin.diffusion import train_diffusion
from exporter.builtin.models import make_tokenizer, save_pipeline
from exporter.builtin.settings import Settings
from exporter.builtin.vae import train_vae

SMOKE = Settings(
    device="cpu",
    compile=False,
    log_every=1,
    vae_steps=2,
    vae_batch=2,
    steps=2,
    batch=4,
    drawings=1,
    chunk=4,
    every=300,
)
"""A run of seconds on a CPU: it proves the script, not the pictures."""


def say(text: str) -> None:
    """Print a line at once, so that a log of a killed run is whole."""
    print(text, flush=True)


def train(settings: Settings, out: Path, stage: str = "all", vae_folder: Path | None = None) -> None:
    """Run one stage or both.

    The stage `vae` leaves a float32 autoencoder in `vae_folder` (default: `out`/vae-float32);
    the stage `diffusion` reads it there; the checkpoint is written to `out`.
    """
    started = time.perf_counter()
    vae_folder = vae_folder or out / "vae-float32"
    if stage in ("vae", "all"):
        vae = train_vae(settings, say)
        if stage == "vae":
            vae.save_pretrained(vae_folder)
            say(f"vae stage took {time.perf_counter() - started:.0f}s")
            return
    else:
        vae = AutoencoderKL.from_pretrained(vae_folder).to(settings.torch_device).eval()
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = make_tokenizer(Path(scratch))
        unet, text_encoder = train_diffusion(settings, vae, tokenizer, say)
        save_pipeline(out, vae, unet, text_encoder, tokenizer)
    total = sum(file.stat().st_size for file in out.rglob("*.safetensors"))
    say(f"wrote {out.name}: {total / 1e6:.2f} MB, {time.perf_counter() - started:.0f}s")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line; every field of `Settings` has its own option."""
    parser = argparse.ArgumentParser(
        prog="python -m exporter.builtin.train",
        description="Train the embedded checkpoint from nothing (one GPU, minutes).",
    )
    parser.add_argument("--out", type=Path, default=path(), help="folder of the checkpoint")
    parser.add_argument("--stage", choices=("vae", "diffusion", "all"), default="all")
    parser.add_argument("--vae", type=Path, help="folder that passes the autoencoder on")
    parser.add_argument("--smoke", action="store_true", help="seconds on a CPU, unusable weights")
    for field in fields(Settings):
        name = "--" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            parser.add_argument(name, action=argparse.BooleanOptionalAction, default=None)
        else:
            parser.add_argument(name, type=type(field.default), default=None)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    given = parse(arguments)
    settings = SMOKE if given.smoke else Settings()
    chosen = {f.name: getattr(given, f.name) for f in fields(Settings)}
    settings = replace(settings, **{k: v for k, v in chosen.items() if v is not None})
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    train(settings, given.out, given.stage, given.vae)


if __name__ == "__main__":
    main()
