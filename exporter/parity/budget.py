"""The error budget: a float64 truth, and what PyTorch itself makes of it at a lower precision.

PyTorch has more than one way to compute a layer, and their rounding differs: its normalisation over
channels-last data is up to ten times less accurate than over contiguous data. Both are PyTorch, and
a runtime may round like either, so the floor is the larger of the two (`LAYOUTS`).

Both depend only on the component's weights, the inputs, the precision and PyTorch, and are kept in
the user's cache under the hash of these four, so the second verification of a model is cheap.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from exporter.cache import PARITY
from exporter.parity.arithmetic import Reference, Tensors
from exporter.parity.cases import Inputs

if TYPE_CHECKING:
    from exporter.architectures.base import Component

CACHE_VERSION = 3
LAYOUTS = ("contiguous", "channels_last")


def cache_folder() -> Path:
    """The room `parity` of the user's cache."""
    return PARITY.folder


def evaluate(
    component: Component,
    cases: Sequence[Inputs],
    *,
    weights: str,
    arithmetic: str,
    layout: str = "contiguous",
    tick: Callable[[str], None] = lambda text: None,
    cache: Path | None = None,
) -> list[Tensors]:
    """Outputs of the reference for every case, in one arithmetic.

    Args:
        weights: Dtype the weights are rounded to first (`float32` leaves them as they are).
        arithmetic: `float64` for the truth, else the precision whose noise is wanted.
        layout: One of `LAYOUTS`.
        cache: Folder of stored results; None computes everything.

    Returns:
        For every case its outputs by name, in the arithmetic's dtype.
    """
    found: list[Tensors | None] = []
    paths: list[Path | None] = []
    for case in cases:
        path = None
        if cache is not None:
            path = cache / f"{_key(component, case, weights, arithmetic, layout)}.safetensors"
        paths.append(path)
        found.append(_read(path, component))
    if any(outputs is None for outputs in found):
        with Reference(component, weights=weights, arithmetic=arithmetic, layout=layout) as reference:
            for i, case in enumerate(cases):
                if found[i] is None:
                    outputs = {n: t.contiguous() for n, t in reference(case.tensors).items()}
                    _write(paths[i], outputs)
                    found[i] = outputs
                tick(f"{case.label} in {arithmetic}")
    return [outputs for outputs in found if outputs is not None]


def layouts_of(component: Component) -> tuple[str, ...]:
    """The layouts that make a difference: both where there are 2-D convolutions."""
    return LAYOUTS if any(len(w.shape) == 4 for w in component.weights.values()) else LAYOUTS[:1]


def _key(component: Component, case: Inputs, weights: str, arithmetic: str, layout: str) -> str:
    import diffusers
    import transformers

    parts = [
        CACHE_VERSION, component.name, component.weights_digest, case.digest(), weights, arithmetic, layout,
        torch.__version__, diffusers.__version__, transformers.__version__,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read(path: Path | None, component: Component) -> Tensors | None:
    """A stored result, or None when there is none or it is damaged (it is then computed again)."""
    if path is None or not path.is_file():
        return None
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError):
        return None
    return tensors if set(tensors) == {spec.name for spec in component.outputs} else None


def _write(path: Path | None, tensors: Tensors) -> None:
    """Store a result; a cache that cannot be written is no reason to stop."""
    if path is None:
        return
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
