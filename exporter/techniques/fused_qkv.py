"""One matrix product for queries, keys and values."""

from __future__ import annotations

from typing import Any, ClassVar

from exporter.techniques.base import GRAPHS, PYTORCH, Technique, Undo, denoiser


class FusedQkv(Technique):
    """The three projections of self-attention (and keys and values of cross-attention) become one."""

    name: ClassVar[str] = "fused-qkv"
    does: ClassVar[str] = "Queries, keys and values of an attention from one matrix product."
    source: ClassVar[str] = "https://huggingface.co/docs/diffusers/optimization/fp16#fuse-projection-matrices"
    targets: ClassVar[frozenset[str]] = PYTORCH | GRAPHS | {"torchscript", "pt2", "stablehlo"}
    never_baked: ClassVar[str] = (
        "Core ML's forms of attention, and clients of safetensors, want three projections."
    )
    effect: ClassVar = "rounding"
    how_much: ClassVar[str] = "The same products; another blocking of the sums."
    stage: ClassVar[int] = 2
    excludes: ClassVar[frozenset[str]] = frozenset({"xformers", "t-gate"})

    def apply(self, pipeline: Any) -> Undo:
        module: Any = denoiser(pipeline)
        before = dict(module.attn_processors)
        module.fuse_qkv_projections()

        def undo() -> None:
            module.set_attn_processor(dict(before))
            for part in module.modules():
                if getattr(part, "fused_projections", False):
                    part.fused_projections = False
                    for fused in ("to_qkv", "to_kv", "to_added_qkv"):
                        if hasattr(part, fused):
                            delattr(part, fused)

        return undo
