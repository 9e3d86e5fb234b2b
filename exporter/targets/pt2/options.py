"""What a user may choose for PyTorch's `.pt2`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from exporter.targets.base import Options


class Pt2Options(Options):
    """Options of `--to pt2`.

    Attributes:
        dtype: Of weights and arithmetic. Inputs and outputs are float32 in any case.
        compile: Write an AOTInductor package, machine code for this kind of machine, instead of a
            portable program. Needs a C++ compiler.
        device: What to compile for; a portable program runs on any.
    """

    dtype: Literal["float32", "float16", "bfloat16"] = "float32"  # type: ignore[assignment]
    compile: bool = False
    device: Literal["cpu", "cuda"] = "cpu"

    @model_validator(mode="after")
    def _device_is_compiled_for(self) -> Self:
        if self.device != "cpu" and not self.compile:
            raise ValueError("a device is only chosen for a compiled package (--compile)")
        return self
