"""Groups of layers on the GPU, fetched ahead."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from exporter.techniques.base import Technique, Undo, denoiser, device_of


class GroupOffload(Technique):
    """Attributes:
    kind: `leaf` moves every layer by itself, `block` some blocks at a time.
    blocks: So many in a group.
    streams: Fetch the next group while this one computes.
    """

    name: ClassVar[str] = "group-offload"
    does: ClassVar[str] = "Moves groups of the denoiser's layers to the GPU ahead of their use."
    source: ClassVar[str] = "https://huggingface.co/docs/diffusers/optimization/memory#group-offloading"
    device: ClassVar = "cuda"
    effect: ClassVar = "exact"
    how_much: ClassVar[str] = "The same bits."
    stage: ClassVar[int] = 6
    excludes: ClassVar[frozenset[str]] = frozenset(
        {"model-offload", "sequential-offload", "device-map", "trace"}
    )

    kind: Literal["leaf", "block"] = "leaf"
    blocks: int = Field(default=1, ge=1)
    streams: bool = True

    def apply(self, pipeline: Any) -> Undo:
        import torch

        module: Any = denoiser(pipeline)
        where = device_of(pipeline)
        module.enable_group_offload(
            onload_device=where,
            offload_device=torch.device("cpu"),
            offload_type=f"{self.kind}_level",
            num_blocks_per_group=self.blocks if self.kind == "block" else None,
            use_stream=self.streams,
        )

        def undo() -> None:
            for part in module.modules():
                registry: Any = getattr(part, "_diffusers_hook", None)
                for name in [n for n in registry.hooks if "group_offload" in n] if registry else []:
                    registry.remove_hook(name, recurse=False)
            module.to(where)

        return undo
