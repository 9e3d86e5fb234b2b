"""Options of the StableHLO target."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import field_validator

from exporter.targets.base import Options

Platform = Literal["cpu", "cuda", "rocm", "tpu"]
PLATFORMS: tuple[Platform, ...] = ("cpu", "cuda", "tpu")
PAINTED = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
"""Pipelines that `exporter.targets.stablehlo.painter` runs without PyTorch."""


class StableHloOptions(Options):
    """Options of `--to stablehlo`.

    Attributes:
        dtype: Of weights and arithmetic. Inputs and outputs are float32 (token ids int32) in any case.
        platforms: What the one program is lowered for, by JAX's names; `cpu,tpu` on the command line.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"  # type: ignore[assignment]
    platforms: tuple[Platform, ...] = PLATFORMS

    @field_validator("platforms", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        given = value.split(",") if isinstance(value, str) else value
        if not isinstance(given, list | tuple):
            return value
        names = [one.strip().lower() if isinstance(one, str) else one for one in given]
        unknown = [one for one in names if one not in get_args(Platform)]
        if unknown or not names:
            what = f"{unknown[0]!r} is no platform of JAX" if unknown else "no platform is named"
            raise ValueError(f"{what}; there are: {', '.join(get_args(Platform))}")
        return tuple(dict.fromkeys(names))
