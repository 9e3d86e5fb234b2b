"""Components over several GPUs."""

from __future__ import annotations

from typing import Any, ClassVar

from exporter.errors import BackendMissing
from exporter.techniques.base import Technique, Undo, device_of, modules


class DeviceMap(Technique):
    """Whole components are placed, largest first, on the device with the most room left.

    diffusers does this while it loads (`device_map="balanced"`); here the pipeline is loaded already.
    """

    name: ClassVar[str] = "device-map"
    does: ClassVar[str] = "Spreads the components over all GPUs of the machine."
    source: ClassVar[str] = "https://huggingface.co/docs/diffusers/tutorials/inference_with_big_models"
    device: ClassVar = "cuda"
    effect: ClassVar = "exact"
    how_much: ClassVar[str] = "The same bits on equal GPUs."
    stage: ClassVar[int] = 0
    excludes: ClassVar[frozenset[str]] = frozenset(
        {"model-offload", "sequential-offload", "group-offload", "context-parallel"}
    )

    def apply(self, pipeline: Any) -> Undo:
        import torch
        from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

        count = torch.cuda.device_count()
        if count < 2:
            raise BackendMissing("The technique device-map needs at least two GPUs.")
        where = device_of(pipeline)
        sizes = {part: sum(p.nbytes for p in part.parameters()) for part in modules(pipeline)}
        used = [0] * count
        for part in sorted(sizes, key=lambda each: -sizes[each]):
            device = used.index(min(used))
            used[device] += sizes[part]
            part.to(f"cuda:{device}")
            add_hook_to_module(part, AlignDevicesHook(device, io_same_device=True))

        def undo() -> None:
            for part in sizes:
                remove_hook_from_module(part)
                part.to(where)

        return undo
