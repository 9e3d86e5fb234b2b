"""torch.compile."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from exporter.errors import UsageError
from exporter.techniques.base import Technique, Undo, denoiser


class Compiled(Technique):
    """Attributes:
    mode: PyTorch's own: `reduce-overhead` records CUDA graphs, `max-autotune` also searches kernels.
    fullgraph: Break instead of falling back to Python.
    regional: Compile one of the denoiser's repeated blocks instead of the whole: seconds instead of minutes.
    dynamic: One program for all sizes; None lets PyTorch decide.
    vae: Also the VAE's decoder.
    tuned: Search the tiles of generated kernels too, and compute 1×1 convolutions as matrix products.
    """

    name: ClassVar[str] = "compile"
    does: ClassVar[str] = "Compiles the denoiser to fused kernels (torch.compile)."
    source: ClassVar[str] = "https://huggingface.co/docs/diffusers/optimization/fp16#torchcompile"
    effect: ClassVar = "rounding"
    how_much: ClassVar[str] = "Fused kernels round less often and in another order."
    stage: ClassVar[int] = 5
    excludes: ClassVar[frozenset[str]] = frozenset({"trace"})

    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default"
    fullgraph: bool = False
    regional: bool = False
    dynamic: bool | None = None
    vae: bool = False
    tuned: bool = False

    def _tuned(self) -> dict[str, Any]:
        """The mode's own options and those of `tuned`: PyTorch takes either a mode or options."""
        from torch import _inductor

        mode: dict[str, Any] = _inductor.list_mode_options(self.mode) if self.mode != "default" else {}
        return {**mode, "conv_1x1_as_mm": True, "coordinate_descent_tuning": True}

    def apply(self, pipeline: Any) -> Undo:
        module: Any = denoiser(pipeline)
        settings: dict[str, Any] = {"fullgraph": self.fullgraph, "dynamic": self.dynamic}
        settings |= {"options": self._tuned()} if self.tuned else {"mode": self.mode}
        compiled = [module]
        if self.regional:
            repeated = getattr(module, "_repeated_blocks", None) or ()
            compiled = [part for part in module.modules() if type(part).__name__ in repeated]
            if not compiled:
                raise UsageError(f"A {type(module).__name__} names no repeated blocks.")
        if self.vae:
            compiled.append(pipeline.vae.decoder)
        for part in compiled:
            part.compile(**settings)

        def undo() -> None:
            for part in compiled:
                part._compiled_call_impl = None

        return undo
