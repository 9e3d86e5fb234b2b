"""What a user may choose for ONNX."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from exporter.targets.base import SeveralSizes
from exporter.targets.onnx.names import Naming
from exporter.targets.quantisation import WeightOptions

LOWEST_OPSET = {"fused": 20, "decomposed": 20, "opset23": 23}
HIGHEST_OPSET = 23


class OnnxOptions(SeveralSizes, WeightOptions):
    """Options of `--to onnx`.

    Int8 weights are the standard's DequantizeLinear (for embeddings its arithmetic behind the look-up);
    int4 ones are com.microsoft MatMulNBits.

    Attributes:
        dtype: Of the weights and of the arithmetic. Inputs and outputs stay float32 in either case, so
            that every client can feed the file whatever its own dtype; so does the sine and cosine of
            the timestep.
        attention: `fused` is one com.microsoft MultiHeadAttention per attention: fastest and leanest in
            ONNX Runtime, also taken by OpenVINO. `opset23` is the standard's own Attention operator.
            `decomposed` is matrix products and a softmax, for runtimes that know neither.
        opset: Version of the standard operator set; by default 20, or 23 with `opset23`.
        naming: Of the files. `diffusers`: a folder a component, as optimum opens them. `transformers.js`: all
            in `onnx/`, the component and its dtype in the name; see `exporter.targets.onnx.names`.
    """

    attention: Literal["fused", "opset23", "decomposed"] = "fused"
    opset: int | None = Field(default=None)
    naming: Naming = "diffusers"

    @field_validator("dtype", mode="before")
    @classmethod
    def _dtype_that_runs(cls, value: Any) -> Any:
        if value == "bfloat16":
            raise ValueError(
                "ONNX Runtime has no bfloat16 kernels for Conv, MatMul and Add on a CPU, so the file could "
                "not be run; take float16 or float32, or --to openvino, which runs bfloat16 weights"
            )
        return value

    @model_validator(mode="after")
    def _opset_has_the_operators(self) -> OnnxOptions:
        lowest = LOWEST_OPSET[self.attention]
        if self.opset is not None and not lowest <= self.opset <= HIGHEST_OPSET:
            raise ValueError(
                f"opset {self.opset} does not go with attention {self.attention}, "
                f"which takes {lowest} to {HIGHEST_OPSET}"
            )
        return self
