"""Tiny random safety checkers of Stable Diffusion, made of the library's own class."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

PIXELS = 32
EYES: dict[str, Any] = {
    "size": {"shortest_edge": PIXELS},
    "crop_size": {"height": PIXELS, "width": PIXELS},
}
"""Settings of the `CLIPImageProcessor` that shows it the pictures."""
NEVER, ALWAYS = 1.5, -1.5
"""Thresholds that no cosine reaches, and that every one passes."""


def checker(threshold: float = NEVER, special: float = NEVER, *, seed: int = 7) -> Any:
    """A checker of three layers.

    Args:
        threshold: Of the 17 concepts, spread a little.
        special: Of the 3 special ones.
    """
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    state = torch.get_rng_state()
    torch.manual_seed(seed)
    vision = {
        "hidden_size": 20, "intermediate_size": 40, "projection_dim": 28, "num_hidden_layers": 3,
        "num_attention_heads": 4, "image_size": PIXELS, "patch_size": 16,
    }  # fmt: skip
    made = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=28))
    for name, parameter in made.named_parameters():
        if name.endswith("_embeds"):
            parameter.data = torch.randn(parameter.shape)
    made.concept_embeds_weights.data = threshold + torch.linspace(-0.01, 0.01, 17)
    made.special_care_embeds_weights.data = special + torch.linspace(-0.01, 0.01, 3)
    torch.set_rng_state(state)
    return made.eval()


def give(checkpoint: Path, folder: Path, made: Any) -> Path:
    """A copy of a Stable Diffusion checkpoint with a checker."""
    from transformers import CLIPImageProcessor

    shutil.copytree(checkpoint, folder)
    made.save_pretrained(folder / "safety_checker")
    CLIPImageProcessor(**EYES).save_pretrained(folder / "feature_extractor")
    path = folder / "model_index.json"
    index = json.loads(path.read_text(encoding="utf-8")) | {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": True,
    }
    path.write_text(json.dumps(index), encoding="utf-8")
    return folder
