"""LoRAs: fused into the weights on their way out, and unfused beside the layers of the reference.

The export gets `W + scale * up @ down`, computed in float64 and rounded once. The reference keeps `W`
and adds `scale * up(down(x))` to what the layer returns, from matrices that the safetensors package
reads: it shares no arithmetic with the fusing it is to judge.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.artifact import OverlayRecord
from exporter.checkpoints.checkpoint import Checkpoint
from exporter.checkpoints.derived import MadeTensor, made
from exporter.checkpoints.overlays.base import Overlaid, existing, record_of
from exporter.checkpoints.overlays.lora_file import Branch, read_lora
from exporter.checkpoints.overlays.lora_keys import PREFIXES, Layers
from exporter.checkpoints.safetensors_file import StoredTensor
from exporter.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class LoraRequest:
    """A LoRA and how strongly it counts."""

    file: str
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> LoraRequest:
        """`FILE` or `FILE:SCALE`; a name that exists as it is wins over a scale.

        Raises:
            UsageError: The scale is not finite.
        """
        if Path(text).expanduser().exists() or ":" not in text:
            return cls(text)
        file, _, scale = text.rpartition(":")
        try:
            value = float(scale)
        except ValueError:
            return cls(text)  # a colon in a name; the file is then missing, and said to be
        if not math.isfinite(value):
            raise UsageError(f"The scale of the LoRA {file} must be a finite number, not {scale}.")
        return cls(file, value)


@dataclass(frozen=True, kw_only=True)
class WithLoras(Overlaid):
    """Attributes:
    branches: Every pair of every LoRA, in order.
    """

    branches: tuple[Branch, ...] = field(repr=False, compare=False)

    def stored(self, folder: str) -> dict[str, StoredTensor]:
        if folder not in self._stores:
            tensors = dict(self.base.stored(folder))
            for path, branches in self._of(folder).items():
                tensors[f"{path}.weight"] = fused(tensors[f"{path}.weight"], branches)
            self._stores[folder] = tensors
        return self._stores[folder]

    def attach(self, folder: str, module: nn.Module, dtype: torch.dtype) -> None:
        self.base.attach(folder, module, dtype)
        for path, branches in self._of(folder).items():
            try:
                layer = module.get_submodule(path)
            except AttributeError:
                continue  # a layer of the checkpoint that this component does not use
            layer.register_forward_hook(_Beside(branches, dtype), with_kwargs=True)

    def rounded(self, folder: str) -> frozenset[str]:
        return self.base.rounded(folder) | frozenset(self._of(folder))

    def reference_digest(self, folder: str) -> str:
        parts = [self.base.reference_digest(folder)]
        if self._of(folder):
            parts += [f"{r.files[0].sha256} {r.scale!r}" for r in self.records]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest() if any(parts) else ""

    def _of(self, folder: str) -> dict[str, list[Branch]]:
        found: dict[str, list[Branch]] = {}
        for branch in self.branches:
            if branch.folder == folder:
                found.setdefault(branch.path, []).append(branch)
        return found


def with_loras(checkpoint: Checkpoint, requests: Sequence[LoraRequest]) -> WithLoras:
    """Lay LoRAs over a checkpoint; several add up.

    Raises:
        CheckpointError: See `read_lora`.
    """
    layers = Layers(checkpoint)
    weights = {
        folder: checkpoint.stored(folder) for folder in checkpoint.component_classes if folder in PREFIXES
    }
    records: list[OverlayRecord] = []
    branches: list[Branch] = []
    remarks: list[str] = []
    for request in requests:
        path = existing(request.file, "LoRA")
        lora = read_lora(path, request.scale, layers, weights)
        branches += lora.branches
        remarks += lora.remarks
        records.append(
            OverlayRecord(
                kind="lora",
                source=request.file,
                scale=request.scale,
                files=[record_of(path)],
                details={"layers": len(lora.branches)},
            )
        )
    return WithLoras.over(checkpoint, tuple(records), branches=tuple(branches), remarks=tuple(remarks))


def fused(weight: StoredTensor, branches: Sequence[Branch]) -> MadeTensor:
    """`weight + sum(scale * up @ down)`, in float64, rounded once to float32 (or kept, if wider).

    Convolutions: `down` is a convolution to `rank` channels and `up` one of size 1, so that their
    product over the rank is again a kernel.
    """

    def make() -> torch.Tensor:
        import torch

        total = weight.load().to(torch.float64, copy=True)
        for branch in branches:
            up, down = branch.up.load().double().flatten(1), branch.down.load().double().flatten(1)
            total.add_((up @ down).reshape(weight.shape), alpha=branch.scale)
        return total if weight.dtype == "F64" else total.float()

    return made(weight.name, "F64" if weight.dtype == "F64" else "F32", weight.shape, weight, make)


class _Beside:
    """A forward hook that adds the branches to what a layer returns."""

    def __init__(self, branches: Sequence[Branch], dtype: torch.dtype) -> None:
        from safetensors import safe_open

        self.pairs = []
        for branch in branches:
            with safe_open(branch.down.file.path, framework="pt") as file:
                down, up = file.get_tensor(branch.down.name), file.get_tensor(branch.up.name)
            self.pairs.append((down.to(dtype), up.to(dtype), branch.scale))

    def __call__(self, layer: Any, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
        from torch import nn
        from torch.nn.functional import conv2d, linear

        x = args[0] if args else next(iter(kwargs.values()))
        for down, up, scale in self.pairs:
            if isinstance(layer, nn.Conv2d):
                down4 = down.reshape(*down.shape[:2], *layer.kernel_size)
                inner = conv2d(x, down4, None, layer.stride, layer.padding, layer.dilation)
                output = output + scale * conv2d(inner, up.reshape(*up.shape[:2], 1, 1))
            else:
                output = output + scale * linear(linear(x, down.flatten(1)), up.flatten(1))
        return output
