"""What a user may choose for TorchScript."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from exporter.targets.base import Options


class TorchScriptOptions(Options):
    """Options of `--to torchscript`.

    Attributes:
        dtype: Of weights and arithmetic. Inputs and outputs are float32 in any case.
        channels_last: Kernels of convolutions in the channels-last layout, which GPUs with tensor cores
            like; they are copied for that, so they are no longer memory-mapped during the export.
        freeze: Weights become constants of the graph, dropouts and dead branches go.
        optimize_for_inference: PyTorch's fusions for the machine it runs on. PyTorch cannot store their
            result, so they are applied whenever the artifact is opened by exporter.
        warm_up: Runs before the trace, so that nothing that happens only once is traced. Diffusers'
            guide takes 3.
    """

    dtype: Literal["float32", "float16", "bfloat16"] = "float32"  # type: ignore[assignment]
    channels_last: bool = False
    freeze: bool = False
    optimize_for_inference: bool = False
    warm_up: int = Field(default=1, ge=0, le=100)
