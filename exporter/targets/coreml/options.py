"""What a user may choose for Core ML."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from exporter.targets.base import Dtype, Options
from exporter.targets.coreml.attention import Attention

DeploymentTarget = Literal["iOS16", "iOS17", "iOS18", "iOS26", "macOS13", "macOS14", "macOS15", "macOS26"]
ComputeUnits = Literal["all", "cpu_and_ne", "cpu_and_gpu", "cpu_only"]


class CoremlOptions(Options):
    """Options of `--to coreml`.

    Attributes:
        dtype: Of weights and arithmetic; `float16` is what the Neural Engine and Apple's runners take.
            The table of timestep frequencies and its sine stay float32, and masks stay finite.
        static: Only one picture at a time: `1xHEIGHTxWIDTH`. A package has one size; without this it is
            the size the model was trained at.
        attention: Of the UNet. `split_einsum` suits the Neural Engine, `split_einsum_v2` the same for
            large pictures, `original` the GPU.
        compute_units: Where the package is meant to run; recorded, and used on macOS.
        deployment_target: The oldest system that must open it.
    """

    dtype: Dtype = "float16"
    attention: Attention = "split_einsum"
    compute_units: ComputeUnits = "all"
    deployment_target: DeploymentTarget = "iOS16"

    @model_validator(mode="after")
    def _one_picture(self) -> CoremlOptions:
        if self.static is not None and self.static[0] != 1:
            raise ValueError(f"Apple's runners take one picture at a time, not {self.static[0]}: use 1xHxW")
        return self
