"""The names that LoRA files give to a model's layers, in every style people use.

- kohya: `lora_unet_down_blocks_0_attentions_0_…_to_q.lora_down.weight`, `.lora_up.weight`, `.alpha`;
  for SDXL with the original's block numbers (`lora_unet_input_blocks_4_1_…`).
- diffusers: `unet.….to_q.lora_A.weight` / `lora_B.weight`; older `….to_q.lora.down.weight`,
  `….processor.to_q_lora.down.weight`, `text_encoder.….q_proj.lora_linear_layer.down.weight`.
- peft: `base_model.model.….to_q.lora_A.weight`, perhaps with the adapter's name after `lora_A`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from exporter.checkpoints.checkpoint import Checkpoint
from exporter.checkpoints.original import unet

Role = Literal["down", "up", "alpha"]

ROLES = (
    (re.compile(r"^(.+)\.(?:lora_down|lora_A(?:\.[^.]+)?)\.weight$"), "down"),
    (re.compile(r"^(.+)\.(?:lora_up|lora_B(?:\.[^.]+)?)\.weight$"), "up"),
    (re.compile(r"^(.+)\.(?:lora|lora_linear_layer)\.down\.weight$"), "down"),
    (re.compile(r"^(.+)\.(?:lora|lora_linear_layer)\.up\.weight$"), "up"),
    (re.compile(r"^(.+)\.alpha$"), "alpha"),
)
OLD_PROCESSOR = re.compile(r"^(.+?)\.(?:processor\.)?to_(q|k|v|out)_lora\.(down|up)\.weight$")
OLD_TEXT = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}

REFUSED = (
    (("hada_",), "LoHa"),
    (("lokr_",), "LoKr"),
    (("dora_scale", "lora_magnitude_vector"), "DoRA"),
    (("oft_", "boft_"), "OFT"),
    (("lora_mid",), "LoCon with a middle matrix"),
    (("lora_embedding_",), "LoRA of embeddings"),
    ((".diff", ".diff_b", ".lora_B.bias", ".lora_up.bias", ".set_weight"), "full difference or bias"),
)
"""Parts of a key → the method, which is not a plain pair of matrices."""

PREFIXES = {"unet": ("unet",), "text_encoder": ("te", "te1"), "text_encoder_2": ("te2",)}
"""Component → what kohya calls it."""


def refused(key: str) -> str | None:
    """The method of a key that is no plain LoRA, or None."""
    for marks, method in REFUSED:
        if any(
            mark in key if mark.endswith("_") or "." not in mark else key.endswith(mark) for mark in marks
        ):
            return method
    return None


def role(key: str) -> tuple[str, Role] | None:
    """(layer as the file names it, role of the tensor), or None for a key of no LoRA style."""
    if match := OLD_PROCESSOR.match(key):
        layer, part, which = match[1], match[2], match[3]
        if ".self_attn" in layer:
            return f"{layer}.{OLD_TEXT[part]}", which  # type: ignore[return-value]
        return f"{layer}.to_{part}{'.0' if part == 'out' else ''}", which  # type: ignore[return-value]
    for pattern, name in ROLES:
        if match := pattern.match(key):
            return match[1], name  # type: ignore[return-value]
    return None


class Layers:
    """Finds the layer of a checkpoint that a file's name means."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.dotted: dict[str, tuple[str, str]] = {}
        self.flat: dict[str, tuple[str, str]] = {}
        self.bare: dict[str, tuple[str, str]] = {}
        for folder, (_, class_name) in checkpoint.component_classes.items():
            if folder not in PREFIXES or "Tokenizer" in class_name:
                continue
            for path in _layers(checkpoint, folder):
                for name in {path, *self._others(checkpoint, folder, path)}:
                    self.dotted[f"{folder}.{name}"] = (folder, path)
                    self.bare.setdefault(name, (folder, path))
                    for prefix in PREFIXES[folder]:
                        self.flat[f"lora_{prefix}_{name.replace('.', '_')}"] = (folder, path)

    def find(self, name: str) -> tuple[str, str] | None:
        """(component folder, layer path) of a layer's name in a file, or None."""
        if name in self.flat:
            return self.flat[name]
        for prefix in ("base_model.model.", "diffusion_model.", "model.diffusion_model."):
            name = name.removeprefix(prefix)
        return self.dotted.get(name) or self.bare.get(name)

    def _others(self, checkpoint: Checkpoint, folder: str, path: str) -> list[str]:
        """Other names of the same layer: the original's block numbers."""
        if folder != "unet":
            return []
        if not hasattr(self, "_original"):
            self._original = _inverse(unet.modules(checkpoint.config("unet")))
        parts = path.split(".")
        for length in range(len(parts), 0, -1):
            module = self._original.get(".".join(parts[:length]))
            if module is None:
                continue
            rest = ".".join(parts[length:])
            if ".resnets." in path:
                rest = next((old for old, new in unet.RESNET.items() if new == rest), rest)
            return [f"{module}.{rest}" if rest else module]
        return []


def _inverse(table: Mapping[str, str]) -> dict[str, str]:
    return {new: old for old, new in table.items()}


def _layers(checkpoint: Checkpoint, folder: str) -> list[str]:
    """Paths of the linear and convolutional layers of a component."""
    return [
        name.removesuffix(".weight")
        for name, tensor in checkpoint.stored(folder).items()
        if name.endswith(".weight") and len(tensor.shape) in (2, 4) and "embeddings." not in name
    ]
