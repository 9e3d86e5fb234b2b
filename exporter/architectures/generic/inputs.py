"""Example inputs for recorded calls: what was seen, tiled or cut to the size; noise where that will do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from exporter.architectures.base import Size, TensorSpec
    from exporter.architectures.generic.recording import Tensor

MOST = 4096
"""Numbers of a sample that are kept."""
FEW = 16
"""Different numbers up to which a tensor is taken for settings (a mask, times) and not for a signal."""


def sample_of(value: torch.Tensor) -> Any:
    """Nested numbers to keep of an observed tensor; None where noise of the same scale stands for it."""
    if value.dim() == 0 or not value.is_floating_point():
        return _cut(value).tolist()
    if value.dim() <= 2 and value.numel() <= MOST and value.unique().numel() <= FEW:
        return value.tolist()
    return None


def _cut(value: torch.Tensor) -> torch.Tensor:
    """One row where there are many numbers: rows are repeated anyway."""
    while value.numel() > MOST:
        axis = max(range(value.dim()), key=lambda a: value.shape[a])
        value = value.narrow(axis, 0, max(1, value.shape[axis] // 2))
    return value


def maker(tensor: Tensor) -> Callable[[TensorSpec, Size, torch.Generator], torch.Tensor]:
    """Makes that input at any size."""
    sample, scale = tensor.sample, tensor.scale

    def make(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
        import torch

        kind, shape = getattr(torch, spec.dtype), spec.shape(size)
        if sample is None:
            return (torch.randn(shape, generator=generator) * scale).to(kind)
        value = torch.tensor(sample, dtype=kind)
        for axis, wanted in enumerate(shape):
            value = value.index_select(axis, torch.arange(wanted) % value.shape[axis])
        return value.contiguous()

    return make
