"""One picture over several GPUs by xDiT."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from exporter.techniques._parallel import HOW_MUCH, NOT_TOGETHER, SPLITTING, of_package, sharing_heads
from exporter.techniques.base import Technique, Undo, denoiser, without_own_forward

TOKENS = 512
"""Tokens of text that FLUX takes at most; only xDiT's pipelines of patches look at it, which are not used."""


class Xdit(Technique):
    """Attributes:
    kind: `ulysses` exchanges heads for tokens around attention, `ring` passes keys and values on.

    xDiT's own sequence-parallel transformer takes the place of diffusers': the same weights in the same
    modules, with its attention (one exchange for queries, keys and values together). Runs under
    `torchrun --nproc-per-node N`; every process has to draw the same noise: give a seed.
    """

    name: ClassVar[str] = "xdit"
    does: ClassVar[str] = "Splits a picture's tokens over the GPUs of a torchrun job (xDiT's USP)."
    source: ClassVar[str] = "https://huggingface.co/docs/diffusers/optimization/xdit"
    denoisers: ClassVar[frozenset[str]] = frozenset({"transformer"})
    pipelines: ClassVar[tuple[str, ...]] = ("FluxPipeline", "FluxKontextPipeline")
    packages: ClassVar[tuple[str, ...]] = ("xfuser", "yunchang", "distvae")
    extra: ClassVar[str] = "xdit"
    device: ClassVar = "cuda"
    effect: ClassVar = "rounding"
    how_much: ClassVar[str] = HOW_MUCH
    stage: ClassVar[int] = 4
    # xDiT chooses attention's kernel itself; `attention-backend` would hide its forward, which splits.
    excludes: ClassVar[frozenset[str]] = (
        (SPLITTING - {"xdit"}) | NOT_TOGETHER | {"fused-qkv", "attention-backend"}
    )

    kind: Literal["ulysses", "ring"] = "ulysses"

    def apply(self, pipeline: Any) -> Undo:
        module: Any = denoiser(pipeline)
        count = sharing_heads(self.name, module, self.kind)
        with of_package(self.name, "xfuser"):
            from xfuser import xFuserArgs
            from xfuser.core.distributed import (
                get_runtime_state,
                init_distributed_environment,
                initialize_runtime_state,
            )
            from xfuser.core.distributed.parallel_state import destroy_model_parallel
            from xfuser.model_executor.models.transformers.transformer_flux import (
                xFuserFlux1Transformer2DWrapper,
                xFuserFluxAttnProcessor,
            )

            init_distributed_environment()  # takes over the job's own group
            engine, _ = xFuserArgs(**{f"{self.kind}_degree": count}).create_config()
            initialize_runtime_state(pipeline, engine)
        state = get_runtime_state()
        state.max_condition_sequence_length = TOKENS
        state.split_text_embed_in_sp = True
        without_own_forward(module, self.name)
        kind, processors = type(module), dict(module.attn_processors)
        module.__class__ = xFuserFlux1Transformer2DWrapper
        module.set_attn_processor(xFuserFluxAttnProcessor())

        def undo() -> None:
            module.__class__ = kind
            module.set_attn_processor(dict(processors))
            destroy_model_parallel()

        return undo
