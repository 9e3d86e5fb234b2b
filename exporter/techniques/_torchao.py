"""What the two quantisations of torchao share."""

from __future__ import annotations

from typing import Any

from exporter.techniques.base import Undo, denoiser, originals


def quantise(pipeline: Any, config: Any, smallest: int) -> Undo:
    """Quantise the denoiser's linear layers of at least `smallest` inputs and outputs."""
    from torch import nn
    from torchao.quantization import quantize_

    module = denoiser(pipeline)
    undo = originals([module])

    def chosen(part: nn.Module, path: str) -> bool:
        return isinstance(part, nn.Linear) and min(part.in_features, part.out_features) >= smallest

    before = {part: part.extra_repr for part in module.modules() if isinstance(part, nn.Linear)}
    quantize_(module, config, filter_fn=chosen)

    def restore() -> None:
        undo()
        for part in before:
            part.__dict__.pop("extra_repr", None)  # torchao writes the quantisation into it

    return restore
