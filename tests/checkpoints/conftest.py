"""What the intake tests share: LoRAs in every style, and a verdict on what an export would write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from exporter.architectures import Component
from exporter.artifact import ComponentRecord
from exporter.checkpoints import Checkpoint
from exporter.parity import Report, verify
from exporter.targets.base import RunOptions
from tests.checkpoints.flow_files import FAMILIES, give_identity
from tests.families import make
from tests.parity.torch_target import TorchRunner, TorchTarget, make_artifact

Judge = Callable[..., Report]


def exported_module(component: Component) -> nn.Module:
    """The module with the weights an export writes (`component.weights`), which is not the reference."""
    module = component.meta_module()
    state = {name: stored.load().float() for name, stored in component.weights.items()}
    module.load_state_dict(state, strict=False, assign=True)
    return module.eval().requires_grad_(False)


class _ExportTarget(TorchTarget):
    def open(self, root: Path, record: ComponentRecord, options: RunOptions | None = None) -> TorchRunner:
        runner = super().open(root, record, options)
        runner.module = exported_module(self.components[record.name])
        return runner


@pytest.fixture(scope="session")
def flow_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """SD3 and FLUX.1 in diffusers layout, each as it can lie in one file."""
    root = tmp_path_factory.mktemp("single-flow")
    made = {family: make(family, root / family) for family in FAMILIES}
    for family in ("sd3", "sd35"):
        give_identity(made[family], root / f"{family}-building")
    return made


@pytest.fixture(scope="session")
def intake_truths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("intake-truths")


@pytest.fixture
def judge_export(intake_truths: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Judge:
    """Verify the weights an export would write against the reference: `judge_export(checkpoint, name)`."""

    def run(checkpoint: Checkpoint, *names: str, **settings: Any) -> Report:
        target = _ExportTarget(checkpoint)
        monkeypatch.setattr("exporter.targets.get_target", lambda name: target)
        root = make_artifact(checkpoint, tmp_path / "artifact", components=names)
        defaults: dict[str, Any] = {
            "steps": 1, "samples": 1, "prompts": ["a red star"], "pipeline": False, "bisect": False,
            "cache": intake_truths,
        }  # fmt: skip
        return verify(root, **(defaults | settings))

    return run


ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
LAYERS = {
    "unet": {
        f"{ATTENTION}.to_q": (32, 32),
        f"{ATTENTION}.to_out.0": (32, 32),
        "up_blocks.1.resnets.0.conv1": (32, 96, 3, 3),
        "mid_block.attentions.0.proj_in": (64, 64, 1, 1),
    },
    "text_encoder": {
        "text_model.encoder.layers.1.self_attn.q_proj": (32, 32),
        "text_model.encoder.layers.0.mlp.fc1": (64, 32),
    },
}
"""Layers of the tiny checkpoint that the LoRAs change, with the shapes of their weights."""


def pairs(
    seed: int = 0, rank: int = 4, size: float = 0.3
) -> dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Random (down, up) by component and layer."""
    generator = torch.Generator().manual_seed(seed)
    result: dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]] = {}
    for folder, layers in LAYERS.items():
        result[folder] = {}
        for name, shape in layers.items():
            down = torch.randn((rank, *shape[1:]), generator=generator) * size
            up = torch.randn((shape[0], rank, *(1 for _ in shape[2:])), generator=generator) * size
            result[folder][name] = (down, up)
    return result


def kohya(made: Mapping[str, Any], alpha: float | None = 2.0) -> dict[str, torch.Tensor]:
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
    state = {}
    for folder, layers in made.items():
        for name, (down, up) in layers.items():
            key = prefixes[folder] + name.replace(".", "_")
            state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
            if alpha is not None:
                state[f"{key}.alpha"] = torch.tensor(alpha)
    return state


def diffusers_new(made: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    state = {}
    for folder, layers in made.items():
        for name, (down, up) in layers.items():
            state |= {f"{folder}.{name}.lora_A.weight": down, f"{folder}.{name}.lora_B.weight": up}
    return state


def diffusers_old(made: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The style of diffusers 0.14 to 0.20: attention processors, and linear layers of the text encoder."""
    state = {}
    for name, (down, up) in made["unet"].items():
        if ".attn" in name:
            head, _, layer = name.partition(".to_")
            key = f"unet.{head}.processor.to_{layer.removesuffix('.0')}_lora"
        else:
            key = f"unet.{name}.lora"
        state |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
    for name, (down, up) in made["text_encoder"].items():
        key = f"text_encoder.{name}.lora_linear_layer"
        state |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
    return state


def peft(made: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    state = {}
    for layers in made.values():
        for name, (down, up) in layers.items():
            key = f"base_model.model.{name}"
            state |= {f"{key}.lora_A.default.weight": down, f"{key}.lora_B.default.weight": up}
    return state


def write(path: Path, state: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> str:
    """A safetensors file; its path as a user would type it."""
    save_file({n: t.contiguous().clone() for n, t in state.items()}, path, metadata=metadata)
    return str(path)
