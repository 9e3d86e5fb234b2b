"""One picture over several GPUs: the tokens are split."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from exporter.errors import UsageError
from exporter.techniques._parallel import HOW_MUCH, processes
from exporter.techniques.base import Technique, Undo, denoiser


class ContextParallel(Technique):
    """Attributes:
    kind: `ulysses` exchanges heads for tokens around attention, `ring` passes keys and values on.

    Runs under `torchrun --nproc-per-node N`, one process a GPU.
    """

    name: ClassVar[str] = "context-parallel"
    does: ClassVar[str] = "Splits a picture's tokens over the GPUs of a torchrun job."
    source: ClassVar[str] = (
        "https://huggingface.co/docs/diffusers/training/distributed_inference#context-parallelism"
    )
    denoisers: ClassVar[frozenset[str]] = frozenset({"transformer"})
    device: ClassVar = "cuda"
    effect: ClassVar = "rounding"
    how_much: ClassVar[str] = HOW_MUCH
    stage: ClassVar[int] = 5
    excludes: ClassVar[frozenset[str]] = frozenset({"device-map", "trace"})

    kind: Literal["ulysses", "ring"] = "ulysses"

    def apply(self, pipeline: Any) -> Undo:
        from diffusers import ContextParallelConfig

        count = processes(self.name)
        module: Any = denoiser(pipeline)
        if not hasattr(module, "enable_parallelism") or getattr(module, "_cp_plan", None) is None:
            raise UsageError(f"A {type(module).__name__} cannot split its tokens.")
        # Merging the parts of a ring takes each part's log-sum-exp, which PyTorch's own choice hides.
        ring = self.kind == "ring"
        if ring:
            module.set_attention_backend("_native_cudnn")
        module.enable_parallelism(config=ContextParallelConfig(**{f"{self.kind}_degree": count}))

        def undo() -> None:
            from diffusers.hooks.context_parallel import remove_context_parallel

            remove_context_parallel(module, module._cp_plan)
            module._parallel_config = None
            for part in module.modules():
                processor: Any = getattr(part, "processor", None)
                if hasattr(processor, "_parallel_config"):
                    processor._parallel_config = None
            if ring:
                module.reset_attention_backend()

        return undo
