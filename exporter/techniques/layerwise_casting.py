"""Weights kept in float8 and cast layer by layer."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from exporter.techniques.base import Technique, Undo, denoiser, originals


class LayerwiseCasting(Technique):
    """Attributes:
    storage: Dtype in which weights are kept; each layer casts its own when it runs.
    """

    name: ClassVar[str] = "layerwise-casting"
    does: ClassVar[str] = "Keeps the denoiser's weights in float8 and casts each layer's when it runs."
    source: ClassVar[str] = "https://huggingface.co/docs/diffusers/optimization/memory#layerwise-casting"
    effect: ClassVar = "lossy"
    how_much: ClassVar[str] = (
        "Weights with 3 bits of mantissa (e4m3); half the memory of bfloat16, and slower."
    )
    stage: ClassVar[int] = 4
    excludes: ClassVar[frozenset[str]] = frozenset(
        {"int8", "fp8", "trace", "compile", "model-offload", "sequential-offload"}
    )

    storage: Literal["float8_e4m3fn", "float8_e5m2"] = "float8_e4m3fn"

    def apply(self, pipeline: Any) -> Undo:
        import torch

        module: Any = denoiser(pipeline)
        restore = originals([module])
        hooked = {part for part in module.modules() if hasattr(part, "_diffusers_hook")}
        module.enable_layerwise_casting(
            storage_dtype=getattr(torch, self.storage), compute_dtype=module.dtype
        )

        def undo() -> None:
            for part in module.modules():
                registry = getattr(part, "_diffusers_hook", None)
                if registry is None:
                    continue
                for name in [n for n in registry.hooks if "layerwise_casting" in n]:
                    # diffusers refuses to undo this, for the weights were rounded; ours are put back below.
                    registry.hooks[name].deinitalize_hook = lambda module: module
                    registry.remove_hook(name, recurse=False)
                if part not in hooked and not registry.hooks:
                    del part._diffusers_hook
            restore()

        return undo
