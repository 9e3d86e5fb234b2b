"""Whole components on the GPU one after the other."""

from __future__ import annotations

from typing import Any, ClassVar

from exporter.techniques.base import Technique, Undo, device_of


class ModelOffload(Technique):
    """Peak device memory is that of the largest component."""

    name: ClassVar[str] = "model-offload"
    does: ClassVar[str] = "Keeps components in host memory and moves each to the GPU when it is used."
    source: ClassVar[str] = "https://huggingface.co/docs/diffusers/optimization/memory#model-offloading"
    device: ClassVar = "cuda"
    effect: ClassVar = "exact"
    how_much: ClassVar[str] = "The same bits."
    stage: ClassVar[int] = 6
    excludes: ClassVar[frozenset[str]] = frozenset({"sequential-offload", "group-offload", "device-map"})

    def apply(self, pipeline: Any) -> Undo:
        where = device_of(pipeline)
        pipeline.enable_model_cpu_offload(device=where)
        return lambda: _back(pipeline, where)


def _back(pipeline: Any, where: Any) -> None:
    pipeline.remove_all_hooks()
    pipeline.to(where)
