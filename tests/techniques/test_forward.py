"""A technique that gave the denoiser another forward leaves none behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from exporter import techniques
from exporter.errors import UsageError
from exporter.techniques.base import set_forward, without_own_forward


class Pipeline:
    """As much of one as these techniques ask for."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.unet = UNet2DConditionModel(
            sample_size=8, block_out_channels=(8,), layers_per_block=1, cross_attention_dim=8,
            norm_num_groups=4, attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
        )  # fmt: skip
        self.components = {"unet": self.unet}


@pytest.mark.parametrize("given", ["attention-backend", "trace", "t-gate"])
def test_the_class_decides_again_after_undo(given: str) -> None:
    pipeline: Any = Pipeline()
    technique = techniques.parse([{given: {"backend": "math"}} if given == "attention-backend" else given])[0]
    undo = technique.apply(pipeline)
    assert "forward" in vars(pipeline.unet)
    undo()
    assert not [path for path, part in pipeline.unet.named_modules() if "forward" in vars(part)]


def test_one_that_was_there_comes_back() -> None:
    module = torch.nn.Linear(2, 2)
    first, second = set_forward(module, lambda x: x + 1), set_forward(module, lambda x: x + 2)
    assert module(1) == 3
    second()
    assert module(1) == 2
    first()
    assert "forward" not in vars(module)


def test_a_leftover_goes_and_another_is_refused() -> None:
    module = torch.nn.Linear(2, 2)
    module.forward = module.forward  # what libraries leave behind
    without_own_forward(module, "xdit")
    assert "forward" not in vars(module)
    set_forward(module, lambda x: x)
    with pytest.raises(UsageError, match="takes the place of the model's forward"):
        without_own_forward(module, "xdit")
