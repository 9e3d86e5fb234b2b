"""What the two quantisations of torchao share."""

from __future__ import annotations

from typing import Any

from exporter.techniques.base import Undo, denoiser, originals

ONE_ROW = ("norm", "time_emb", "add_embedding", "_embedder")


def quantise(pipeline: Any, config: Any, smallest: int) -> Undo:
    """Quantise the denoiser's linear layers of at least `smallest` inputs and outputs.

    Not those that see one row a picture (of the timestep and pooled text: embeddings, modulation of norms):
    they cost nothing, move the picture most, and torchao's kernels want more than 16 rows.
    """
    from torch import nn
    from torchao.quantization import quantize_

    module = denoiser(pipeline)
    undo = originals([module])

    def chosen(part: nn.Module, path: str) -> bool:
        return (
            isinstance(part, nn.Linear)
            and min(part.in_features, part.out_features) >= smallest
            and not any(word in path for word in ONE_ROW)
        )

    before = {part: part.extra_repr for part in module.modules() if isinstance(part, nn.Linear)}
    quantize_(module, config, filter_fn=chosen)

    def restore() -> None:
        undo()
        for part in before:
            part.__dict__.pop("extra_repr", None)  # torchao writes the quantisation into it

    return restore
