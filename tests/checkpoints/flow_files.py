"""Tiny SD3 and FLUX.1 models, and the same in one file."""

from __future__ import annotations

from pathlib import Path

import torch

from tests import original_layout
from tests.parts import text
from tests.tiny import make_tokenizer

FAMILIES = ("sd3", "sd35", "flux", "flux_schnell", "flux_fill")
State = dict[str, torch.Tensor]


def give_identity(folder: Path, building: Path) -> None:
    """CLIP L of SD3 has no projection in its authors' file; diffusers' folder then has the identity."""
    torch.manual_seed(3)
    encoder = text(make_tokenizer(building), hidden=24, projected=True)
    with torch.no_grad():
        encoder.text_projection.weight.copy_(torch.eye(24))
    encoder.save_pretrained(folder / "text_encoder")


def transformer(folder: Path, prefix: str = original_layout.PREFIX) -> State:
    layout = original_layout.flux if "flux" in folder.name else original_layout.sd3
    return layout(*original_layout.read(folder, "transformer"), prefix)


def encoders(folder: Path) -> State:
    """All text encoders, as an all-in-one file has them."""
    names = ["clip_l", "t5xxl"] if "flux" in folder.name else ["clip_l", "clip_g", "t5xxl"]
    state: State = {}
    for number, name in enumerate(names):
        part = folder / ("text_encoder" if number == 0 else f"text_encoder_{number + 1}")
        if part.is_dir():
            state |= original_layout.text(original_layout.read(folder, part.name)[0], name)
    state.pop("text_encoders.clip_l.transformer.text_projection.weight", None)
    return state


def everything(folder: Path) -> State:
    prefix = "vae." if "flux" in folder.name else "first_stage_model."
    autoencoder = original_layout.vae(*original_layout.read(folder, "vae"), prefix)
    return transformer(folder) | autoencoder | encoders(folder)
