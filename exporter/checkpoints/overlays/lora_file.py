"""One LoRA file, read and matched with the layers of a checkpoint."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.checkpoints.checkpoint import read_json
from exporter.checkpoints.overlays.lora_keys import Layers, refused, role
from exporter.checkpoints.safetensors_file import SafetensorsFile, StoredTensor
from exporter.errors import CheckpointError

SHOWN = 3


@dataclass(frozen=True)
class Branch:
    """What a LoRA adds to one layer: `scale * up @ down`.

    Attributes:
        folder / path: The layer.
        down: [rank, in] or [rank, in, height, width].
        up: [out, rank] or [out, rank, 1, 1].
        scale: The user's scale times alpha / rank.
    """

    folder: str
    path: str
    down: StoredTensor
    up: StoredTensor
    scale: float


@dataclass(frozen=True)
class LoraFile:
    """A LoRA that fits a checkpoint; `remarks` names what it has no place for."""

    path: Path
    branches: tuple[Branch, ...]
    remarks: tuple[str, ...]


def read_lora(
    path: Path, scale: float, layers: Layers, weights: Mapping[str, Mapping[str, StoredTensor]]
) -> LoraFile:
    """Read a LoRA and find its layers.

    Args:
        scale: The user's.
        layers: Of the checkpoint.
        weights: The checkpoint's tensors by component folder.

    Raises:
        CheckpointError: A pickle, damaged, another method than LoRA, nothing that fits, a shape that does
            not fit, half of a pair missing, or values that are not finite.
    """
    if path.suffix.lower() != ".safetensors":
        raise CheckpointError(
            f"The LoRA {path.name} is no .safetensors file; a pickle can run code when it is opened, "
            "so it is refused.",
            hint="Look for the same LoRA as .safetensors.",
        )
    file = SafetensorsFile(path)
    found: dict[tuple[str, str], dict[str, StoredTensor]] = {}
    strangers: list[str] = []
    for key, tensor in file.tensors.items():
        method = refused(key)
        if method is not None:
            raise CheckpointError(
                f"{path.name} is not a plain LoRA but a {method} ({key!r}), which this version cannot fuse.",
                hint="Merge it with the tool that made it, and convert the merged model.",
            )
        split = role(key)
        place = layers.find(split[0]) if split is not None else None
        if split is None or place is None:
            strangers.append(key)
            continue
        pair = found.setdefault(place, {})
        if split[1] in pair:
            raise CheckpointError(
                f"{path.name} names the layer {place[1]} of the {place[0]} twice ({key!r})."
            )
        pair[split[1]] = tensor
    if not any("down" in pair or "up" in pair for pair in found.values()):
        raise CheckpointError(
            f"{path.name} has no key that matches a layer of the model: {_some(strangers)}.",
            hint="It was made for another model family, or is no LoRA.",
        )
    settings = _Settings.read(path, file.metadata)
    branches = tuple(
        _branch(path, place, pair, scale, settings, weights[place[0]][f"{place[1]}.weight"])
        for place, pair in found.items()
    )
    remarks = []
    if strangers:
        remarks.append(
            f"{path.name}: {len(strangers)} of {len(file.tensors)} tensors match no layer of the model and "
            f"were left out: {_some(strangers)}"
        )
    return LoraFile(path, branches, tuple(remarks))


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (", …" if len(keys) > SHOWN else "") if keys else "it is empty"


def _branch(
    path: Path, place: tuple[str, str], pair: Mapping[str, StoredTensor], scale: float,
    settings: _Settings, weight: StoredTensor,
) -> Branch:  # fmt: skip
    where = f"{path.name}, layer {place[1]} of the {place[0]}"
    if "down" not in pair or "up" not in pair:
        have = "up" if "up" in pair else "down" if "down" in pair else "alpha"
        raise CheckpointError(f"{where}: there is only the {have} part, the rest of the pair is missing.")
    down, up = pair["down"], pair["up"]
    rank = down.shape[0] if down.shape else 0
    out, inputs = weight.shape[0], weight.shape[1]
    kernel = tuple(weight.shape[2:])
    fits = (
        rank > 0
        and len(down.shape) in (2, 4)
        and len(up.shape) in (2, 4)
        and down.shape[1] == inputs
        and tuple(down.shape[2:]) in ((kernel, ()) if set(kernel) <= {1} else (kernel,))
    ) or (not kernel and tuple(down.shape[1:]) == (inputs, 1, 1))
    if not fits or tuple(up.shape[:2]) != (out, rank) or set(up.shape[2:]) - {1}:
        raise CheckpointError(
            f"{where}: its matrices have shapes {list(down.shape)} and {list(up.shape)}, which do not fit "
            f"a weight of shape {list(weight.shape)}.",
            hint="It was made for another model family.",
        )
    alpha = settings.alpha(place, rank)
    if "alpha" in pair:
        if pair["alpha"].numel != 1:
            raise CheckpointError(f"{where}: its alpha is not one number.")
        alpha = float(pair["alpha"].load().reshape(()).float())
    for part, tensor in (("down", down), ("up", up)):
        if not bool(tensor.load().float().isfinite().all()):
            raise CheckpointError(f"{where}: its {part} matrix holds NaN or Inf.")
    if not math.isfinite(alpha):
        raise CheckpointError(f"{where}: its alpha is {alpha}.")
    divisor = math.sqrt(rank) if settings.square_root(place) else rank
    return Branch(place[0], place[1], down, up, scale * alpha / divisor)


@dataclass(frozen=True)
class _Settings:
    """What peft writes beside the tensors: `lora_alpha`, `alpha_pattern`, `use_rslora`, per component.

    In diffusers' files it stands in the header as `lora_adapter_metadata`, its keys prefixed with the
    component; beside peft's own files lies `adapter_config.json`.
    """

    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, metadata: Mapping[str, str]) -> _Settings:
        stated = metadata.get("lora_adapter_metadata")
        values: Mapping[str, Any] = {}
        if isinstance(stated, str):
            try:
                values = json.loads(stated)
            except (ValueError, RecursionError) as error:
                raise CheckpointError(f"{path.name} has a header that is not JSON.") from error
        elif (path.parent / "adapter_config.json").is_file() and path.name.startswith("adapter_model"):
            values = read_json(path.parent / "adapter_config.json")
        result = cls(values if isinstance(values, Mapping) else {})
        if any(key.endswith("use_dora") and value for key, value in result.values.items()):
            raise CheckpointError(f"{path.name} is a DoRA, which this version cannot fuse.")
        return result

    def _get(self, place: tuple[str, str], key: str) -> Any:
        return self.values.get(f"{place[0]}.{key}", self.values.get(key))

    def alpha(self, place: tuple[str, str], rank: int) -> float:
        """Alpha of a layer; the rank, so that the factor is 1, where nothing is stated."""
        pattern = self._get(place, "alpha_pattern")
        if isinstance(pattern, Mapping):
            for name, value in pattern.items():
                if place[1] == name or re.search(rf"(^|\.){re.escape(str(name))}$", place[1]):
                    return _number(value, rank)
        return _number(self._get(place, "lora_alpha"), rank)

    def square_root(self, place: tuple[str, str]) -> bool:
        return self._get(place, "use_rslora") is True


def _number(value: Any, default: float) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float(default)
