"""Keeps painted reference runs, so that verifying the same model again paints only with the artifact."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from exporter.hashing import sha256_of
from exporter.parity.given import control_note
from exporter.parity.painting import Call, Painted, Plan

if TYPE_CHECKING:
    from exporter.architectures.base import Component
    from exporter.checkpoints import Checkpoint

CACHE_VERSION = 2


def cached_paint(
    cache: Path | None,
    checkpoint: Checkpoint,
    components: Sequence[Component],
    plan: Plan,
    precisions: Mapping[str, tuple[str, str]],
    role: str,
    paint: Callable[[], Painted],
) -> Painted:
    """The stored run of that kind, or `paint()` stored.

    Args:
        precisions: (weights, arithmetic) by component; part of the key.
        role: `reference` or `twin`; part of the key.
    """
    if cache is None:
        return paint()
    path = cache / f"painted-{_key(checkpoint, components, plan, precisions, role)}.safetensors"
    found = load(path)
    if found is None:
        found = paint()
        if role != "reference":
            found.calls = {}
        save(found, path)
    return found


def _key(
    checkpoint: Checkpoint,
    components: Sequence[Component],
    plan: Plan,
    precisions: Mapping[str, tuple[str, str]],
    role: str,
) -> str:
    import diffusers
    import transformers

    small = {
        path.relative_to(checkpoint.root).as_posix(): sha256_of(path)
        for folder in sorted(checkpoint.component_classes)
        for path in sorted((checkpoint.root / folder).glob("*"))
        if path.suffix in {".json", ".txt", ".model"}
    }
    parts = [
        CACHE_VERSION, role, checkpoint.pipeline_class, small, dataclasses.asdict(plan),
        sorted(precisions.items()), {c.name: c.weights_digest for c in components},
        torch.__version__, diffusers.__version__, transformers.__version__,
    ]  # fmt: skip
    drawn = control_note(plan, [c.name for c in components])
    parts += [drawn] if drawn else []  # only of runs that are shown something besides their prompts
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def save(painted: Painted, path: Path) -> None:
    """Store a run; a cache that cannot be written is no reason to stop."""
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    calls = []
    for g, states in enumerate(painted.latents):
        tensors |= {f"latents/{g}/{s}": state for s, state in enumerate(states)}
    tensors |= {f"images/{g}": image for g, image in enumerate(painted.images)}
    for component, made in painted.calls.items():
        for n, call in enumerate(made):
            calls.append([component, n, call.label, list(call.order), sorted(call.inputs)])
            tensors |= {f"calls/{component}/{n}/{name}": value for name, value in call.inputs.items()}
    notes = {"calls": json.dumps(calls), "timesteps": json.dumps(painted.timesteps)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({n: t.contiguous().clone() for n, t in tensors.items()}, temporary, metadata=notes)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)


def load(path: Path) -> Painted | None:
    """A stored run, or None when there is none or it is damaged (it is then painted again)."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata()
            painted = Painted(timesteps=json.loads(notes["timesteps"]))
            for g, times in enumerate(painted.timesteps):
                painted.latents.append([file.get_tensor(f"latents/{g}/{s}") for s in range(len(times))])
                painted.images.append(file.get_tensor(f"images/{g}"))
            for component, n, label, order, names in json.loads(notes["calls"]):
                inputs = {name: file.get_tensor(f"calls/{component}/{n}/{name}") for name in names}
                painted.calls.setdefault(component, []).append(Call(inputs, label, (order[0], order[1])))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    return painted
