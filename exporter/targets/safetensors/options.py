"""What a user may choose for safetensors."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import field_validator, model_validator

from exporter.storage import parse_size
from exporter.targets.base import Options


class SafetensorsOptions(Options):
    """Options of `--to safetensors`.

    Attributes:
        dtype: `stored` copies every tensor byte for byte. The others cast every floating tensor;
            `float8_e4m3fn` casts matrices and kernels only (`exporter.storage.goes_to_float8`).
        max_shard_size: Largest number of bytes of tensors in one file, as `5GB` (10^9) or `5GiB`
            (2^30). A tensor that is larger gets a shard of its own, as with Hugging Face's libraries.
        output_variant: Put into the names of what is written: `fp16` gives
            `diffusion_pytorch_model.fp16.safetensors`.
    """

    dtype: Literal["stored", "float32", "bfloat16", "float16", "float8_e4m3fn"] = "stored"  # type: ignore[assignment]
    max_shard_size: int = 5 * 10**9
    output_variant: str | None = None

    @field_validator("max_shard_size", mode="before")
    @classmethod
    def _parse_size(cls, value: Any) -> Any:
        return parse_size(value) if isinstance(value, str) else value

    @field_validator("max_shard_size")
    @classmethod
    def _positive(cls, value: int) -> int:
        if value < 1:
            raise ValueError(f"{value} bytes hold no tensor; try 5GB")
        return value

    @field_validator("output_variant")
    @classmethod
    def _plain_word(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", value):
            raise ValueError(f"{value!r} is not a plain word such as fp16")
        return value

    @model_validator(mode="after")
    def _no_shapes(self) -> SafetensorsOptions:
        if self.static is not None:
            raise ValueError("weights have no picture size, so there is nothing to bake; leave --static out")
        return self
