"""The kernel that computes scaled dot-product attention."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from exporter.errors import BackendMissing
from exporter.techniques.base import Technique, Undo, denoiser, set_forward

KINDS = {
    "flash": "FLASH_ATTENTION",
    "efficient": "EFFICIENT_ATTENTION",
    "cudnn": "CUDNN_ATTENTION",
    "math": "MATH",
}


class AttentionBackend(Technique):
    """Attributes:
    backend: PyTorch's kernel; it is tried first, and the others stay allowed where it cannot serve.
    """

    name: ClassVar[str] = "attention-backend"
    does: ClassVar[str] = "Which of PyTorch's attention kernels is used."
    source: ClassVar[str] = (
        "https://docs.pytorch.org/docs/stable/generated/torch.nn.attention.sdpa_kernel.html"
    )
    effect: ClassVar = "rounding"
    how_much: ClassVar[str] = "The same formula; another order of sums."
    stage: ClassVar[int] = 2
    excludes: ClassVar[frozenset[str]] = frozenset({"xformers"})

    backend: Literal["flash", "efficient", "cudnn", "math"] = "flash"

    def apply(self, pipeline: Any) -> Undo:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        module = denoiser(pipeline)
        chosen = getattr(SDPBackend, KINDS[self.backend], None)
        if chosen is None:
            raise BackendMissing(f"This PyTorch has no attention kernel {self.backend!r}.")
        order = [
            chosen,
            *(getattr(SDPBackend, k) for k in KINDS.values() if getattr(SDPBackend, k) != chosen),
        ]
        before = module.forward

        def forward(*arguments: Any, **named: Any) -> Any:
            with sdpa_kernel(order, set_priority=True):
                return before(*arguments, **named)

        return set_forward(module, forward)
