"""The denoiser as TorchScript."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

from exporter.errors import UsageError
from exporter.techniques.base import Technique, Undo, denoiser, set_forward


class Trace(Technique):
    """Attributes:
    freeze: Also make weights constants of the graph and fuse for inference.

    The trace is made at the first call of each shape. Deprecated by PyTorch in favour of `compile`.
    """

    name: ClassVar[str] = "trace"
    does: ClassVar[str] = "Runs the UNet as a traced TorchScript program, without Python."
    source: ClassVar[str] = "https://huggingface.co/docs/diffusers/optimization/memory#torchjittrace"
    denoisers: ClassVar[frozenset[str]] = frozenset({"unet"})
    effect: ClassVar = "exact"
    how_much: ClassVar[str] = "The same kernels; with `freeze`, fused ones that round elsewhere."
    stage: ClassVar[int] = 5
    excludes: ClassVar[frozenset[str]] = frozenset({"compile"})

    freeze: bool = False

    def apply(self, pipeline: Any) -> Undo:
        import torch

        module: Any = denoiser(pipeline)
        before = module.forward
        made: dict[tuple[Any, ...], Any] = {}

        class Positional(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = module

            def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
                sample, timestep, text, *added = tensors
                conditions = dict(zip(("text_embeds", "time_ids"), added, strict=False)) or None
                output: torch.Tensor = before(
                    sample, timestep, text, added_cond_kwargs=conditions, return_dict=False
                )[0]
                return output

        def forward(
            sample: Any,
            timestep: Any,
            encoder_hidden_states: Any,
            added_cond_kwargs: dict[str, Any] | None = None,
            return_dict: bool = True,
            **named: Any,
        ) -> Any:
            extra = sorted(name for name, value in named.items() if value is not None)
            if extra:
                raise UsageError(f"A traced UNet cannot be given {', '.join(extra)}.")
            added = [added_cond_kwargs[k] for k in ("text_embeds", "time_ids")] if added_cond_kwargs else []
            timestep = torch.as_tensor(timestep, device=sample.device)
            tensors = (sample, timestep, encoder_hidden_states, *added)
            shapes = tuple((*tensor.shape, tensor.dtype) for tensor in tensors)
            if shapes not in made:
                with torch.no_grad(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    traced = torch.jit.trace(Positional().eval(), tensors, check_trace=False)
                    if self.freeze:
                        traced = torch.jit.optimize_for_inference(torch.jit.freeze(traced.eval()))
                made[shapes] = traced
            output = made[shapes](*tensors)
            if not return_dict:
                return (output,)
            from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

            return UNet2DConditionOutput(sample=output)

        return set_forward(module, forward)
