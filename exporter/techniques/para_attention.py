"""One picture over several GPUs by the package ParaAttention."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar, Literal

from exporter.techniques._parallel import HOW_MUCH, NOT_TOGETHER, SPLITTING, of_package, sharing_heads
from exporter.techniques.base import Technique, Undo, denoiser, set_forward


class ParaAttention(Technique):
    """Attributes:
    kind: `ulysses` exchanges heads for tokens around attention, `ring` passes keys and values on.

    Runs under `torchrun --nproc-per-node N`. Every process has to draw the same noise: give a seed. The
    package also has a first block cache; that idea is in diffusers (`first-block-cache`).
    """

    name: ClassVar[str] = "para-attention"
    does: ClassVar[str] = "Splits a picture's tokens over the processes of a torchrun job (ParaAttention)."
    source: ClassVar[str] = "https://huggingface.co/docs/diffusers/optimization/para_attn"
    denoisers: ClassVar[frozenset[str]] = frozenset({"transformer"})
    pipelines: ClassVar[tuple[str, ...]] = ("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline")
    packages: ClassVar[tuple[str, ...]] = ("para_attn",)
    extra: ClassVar[str] = "para-attention"
    effect: ClassVar = "rounding"
    how_much: ClassVar[str] = HOW_MUCH
    stage: ClassVar[int] = 5
    excludes: ClassVar[frozenset[str]] = (SPLITTING - {"para-attention"}) | NOT_TOGETHER

    kind: Literal["ulysses", "ring"] = "ulysses"

    def apply(self, pipeline: Any) -> Undo:
        module: Any = denoiser(pipeline)
        count = sharing_heads(self.name, module, self.kind)
        with of_package(self.name, "para-attn"):
            from para_attn.context_parallel import init_context_parallel_mesh
            from para_attn.context_parallel.diffusers_adapters import parallelize_transformer

            mesh = init_context_parallel_mesh(module.device.type, **{f"max_{self.kind}_dim_size": count})
        put_back = set_forward(module, _plainly_asking(module.forward))
        parallelize_transformer(module, mesh=mesh)

        def undo() -> None:
            put_back()
            del module._is_parallelized

        return undo


def _plainly_asking(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward in which attention is asked for without `enable_gqa=False`.

    diffusers 0.39 says it with every call; ParaAttention 0.3.38 takes the arguments of before.
    """
    import torch.nn.functional as F
    from torch.overrides import TorchFunctionMode

    class Plainly(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = dict(kwargs or {})
            if func is F.scaled_dot_product_attention and given.get("enable_gqa") is False:
                del given["enable_gqa"]
            return func(*args, **given)

    @wraps(forward)
    def called(*args: Any, **kwargs: Any) -> Any:
        with Plainly():
            return forward(*args, **kwargs)

    return called
