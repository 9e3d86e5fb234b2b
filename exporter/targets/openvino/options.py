"""What a user may choose for OpenVINO."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from exporter.targets.base import SeveralSizes
from exporter.targets.quantisation import WeightOptions


class OpenVinoOptions(SeveralSizes, WeightOptions):
    """Options of `--to openvino`.

    Attributes:
        dtype: Dtype of the weights on disk. float16 halves the files; the arithmetic is not touched
            (it is the precision hint's), so a float16 artifact run under `f32` computes in float32
            with rounded weights. bfloat16 does too, and keeps the range of float32: for weights that
            float16 cannot hold, and exact for checkpoints stored in bfloat16.
        precision_hint: What `exporter run` passes as `INFERENCE_PRECISION_HINT` unless told otherwise.
            `default` leaves the choice to OpenVINO, which takes bfloat16 where the CPU has it (about
            4 % relative error on a Stable Diffusion UNet).
        timestep: Dtype of the UNet's `timestep` input, always of shape [1]. `int64` is what OpenVINO
            GenAI sets and optimum exports; schedulers with fractional timesteps (Euler and LMS with
            `linspace` spacing) need `float32`, which optimum opens and GenAI refuses.
        activations_scale: Of every component: what a GPU that computes in float16 divides activations by
            (`ACTIVATIONS_SCALE_FACTOR`, in the file's `rt_info`). None: measured, where the artifact is made
            for float16, and written only for components whose values float16 does not hold.
        activations: `int8` also rounds what enters convolutions and products with weights, to 256 steps of
            a range that is measured on inputs captured from a run of the checkpoint (by nncf). Goes with
            symmetric int8 weights, which is what OpenVINO multiplies as integers, and with one size.
        calibration_prompts: Of that run; None takes some of our own, other than those `verify` paints.
        calibration_steps / calibration_seed: Of that run.
        calibration_samples: Steps of each of its pictures whose inputs are taken.
    """

    dtype: Literal["float32", "float16", "bfloat16"] = "float32"  # type: ignore[assignment]
    precision_hint: Literal["f32", "bf16", "f16", "default"] = "f32"
    timestep: Literal["int64", "float32"] = "int64"
    activations_scale: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    activations: Literal["int8"] | None = None
    calibration_prompts: tuple[str, ...] | None = None
    calibration_steps: int | None = Field(default=None, ge=1)
    calibration_seed: int | None = Field(default=None, ge=0)
    calibration_samples: int | None = Field(default=None, ge=1)

    @field_validator("calibration_prompts", mode="before")
    @classmethod
    def _one_prompt(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _what_activations_go_with(self) -> OpenVinoOptions:
        if self.activations is None:
            for name in ("prompts", "steps", "seed", "samples"):
                if getattr(self, f"calibration_{name}") is not None:
                    raise ValueError(f"calibration {name} go with --activations int8")
            return self
        if self.weights != "int8":
            raise ValueError("activations in int8 go with --weights int8")
        if self.symmetric is False:
            raise ValueError("activations in int8 go with symmetric weights: OpenVINO multiplies no others")
        if self.more_sizes:
            raise ValueError("activations in int8 are calibrated at one size: give --static once or never")
        return self
