"""Layer by layer on the GPU."""

from __future__ import annotations

from typing import Any, ClassVar

from exporter.techniques.base import Technique, Undo, device_of


class SequentialOffload(Technique):
    """Peak device memory is that of one layer and the activations; several times slower."""

    name: ClassVar[str] = "sequential-offload"
    does: ClassVar[str] = "Moves each layer's weights to the GPU when it runs, and away again."
    source: ClassVar[str] = "https://huggingface.co/docs/diffusers/optimization/memory#cpu-offloading"
    device: ClassVar = "cuda"
    effect: ClassVar = "exact"
    how_much: ClassVar[str] = "The same bits."
    stage: ClassVar[int] = 6
    excludes: ClassVar[frozenset[str]] = frozenset(
        {"model-offload", "group-offload", "device-map", "compile", "trace"}
    )

    def apply(self, pipeline: Any) -> Undo:
        where = device_of(pipeline)
        pipeline.enable_sequential_cpu_offload(device=where)

        def undo() -> None:
            pipeline.remove_all_hooks()
            pipeline.to(where)

        return undo
