"""xFormers' memory-efficient attention."""

from __future__ import annotations

from typing import Any, ClassVar

from exporter.techniques.base import Technique, Undo, denoiser


class XformersAttention(Technique):
    """Kept for GPUs that PyTorch's own kernels do not serve; elsewhere `attention-backend` is as fast."""

    name: ClassVar[str] = "xformers"
    does: ClassVar[str] = "xFormers' memory-efficient attention."
    source: ClassVar[str] = "https://huggingface.co/docs/diffusers/optimization/xformers"
    packages: ClassVar[tuple[str, ...]] = ("xformers",)
    extra: ClassVar[str] = ""
    device: ClassVar = "cuda"
    effect: ClassVar = "rounding"
    how_much: ClassVar[str] = "The same formula; another order of sums."
    stage: ClassVar[int] = 2

    def apply(self, pipeline: Any) -> Undo:
        module: Any = denoiser(pipeline)
        processors = module.attn_processors
        pipeline.enable_xformers_memory_efficient_attention()

        def undo() -> None:
            pipeline.disable_xformers_memory_efficient_attention()
            module.set_attn_processor(dict(processors))

        return undo
