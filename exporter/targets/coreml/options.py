"""What a user may choose for Core ML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from exporter.targets.base import Dtype, SeveralSizes
from exporter.targets.coreml.attention import Attention
from exporter.targets.coreml.layout import INPUTS, kind_of
from exporter.targets.coreml.palettes import PALETTE_BITS, Integer

DeploymentTarget = Literal["iOS16", "iOS17", "iOS18", "iOS26", "macOS13", "macOS14", "macOS15", "macOS26"]
ComputeUnits = Literal["all", "cpu_and_ne", "cpu_and_gpu", "cpu_only"]
BEFORE_18 = ("iOS16", "iOS17", "macOS13", "macOS14")
"""Deployment targets whose operators know no four-bit integers, no blocks, and no second function."""
ALL = "all"
MIXED = "mixed:"


class CoremlOptions(SeveralSizes):
    """Options of `--to coreml`.

    Attributes:
        dtype: Of weights and arithmetic; `float16` is what the Neural Engine and Apple's runners take.
            The table of timestep frequencies and its sine stay float32, and masks stay finite.
        static: Only one picture at a time: `1xHEIGHTxWIDTH`. Without it the size the model was trained at.
        more_sizes: The sizes after the first: further functions of the same package, which share its
            weights. From iOS 18 and macOS 15 on.
        attention: Of the UNet and its ControlNets. `split_einsum` suits the Neural Engine,
            `split_einsum_v2` the same for large pictures, `original` the GPU.
        compute_units: Where the package is meant to run; recorded, and used on macOS.
        deployment_target: The oldest system that must open it.
        palettize: Component (`all` is every other) → bits of its weights' palettes, `1` to `8`, or
            `mixed:AVERAGE`: bits by measured sensitivity.
        quantize: Component (`all` is every other) → `int8` or `int4`.
        chunk: The UNet as two packages of about the same size.
    """

    dtype: Dtype = "float16"
    attention: Attention = "split_einsum"
    compute_units: ComputeUnits = "all"
    deployment_target: DeploymentTarget = "iOS16"
    palettize: dict[str, str] = Field(default_factory=dict)
    quantize: dict[str, str] = Field(default_factory=dict)
    chunk: bool = False

    @field_validator("palettize", "quantize", mode="before")
    @classmethod
    def _by_component(cls, value: Any) -> Any:
        """`6` or `unet=6`, once or more often, as a mapping."""
        if isinstance(value, Mapping):
            found = {str(name): str(how) for name, how in value.items()}
        else:
            given = [value] if isinstance(value, str | int) else value
            if not isinstance(given, Iterable):
                return value
            found = {}
            for item in map(str, given):
                name, _, how = item.rpartition("=")
                name = name or ALL
                if name in found:
                    raise ValueError(f"{name} is given twice")
                found[name] = how
        for name in found:
            if name != ALL and kind_of(name) not in INPUTS:
                raise ValueError(f"there is no component {name!r}; there are: {', '.join(INPUTS)}")
        return found

    @field_validator("palettize")
    @classmethod
    def _known_bits(cls, value: dict[str, str]) -> dict[str, str]:
        for how in value.values():
            if how.startswith(MIXED):
                average_bits(how)
            elif how not in map(str, PALETTE_BITS):
                known = ", ".join(map(str, PALETTE_BITS))
                raise ValueError(f"a palette has {known} bits, or {MIXED}4.5 on average; not {how!r}")
        return value

    @field_validator("quantize")
    @classmethod
    def _known_integers(cls, value: dict[str, str]) -> dict[str, str]:
        for how in value.values():
            if how not in get_args(Integer):
                raise ValueError(f"weights are quantised to {' or '.join(get_args(Integer))}, not {how!r}")
        return value

    @model_validator(mode="after")
    def _one_picture(self) -> CoremlOptions:
        for pictures, *_ in self.sizes():
            if pictures != 1:
                raise ValueError(f"Apple's runners take one picture at a time, not {pictures}: use 1xHxW")
        return self

    @model_validator(mode="after")
    def _several_sizes_where_there_are_functions(self) -> CoremlOptions:
        if self.more_sizes and self.deployment_target in BEFORE_18:
            raise ValueError(
                "several sizes in one package need --deployment-target iOS18, macOS15 or later, not "
                f"{self.deployment_target}; for that make an artifact for each size"
            )
        return self

    @model_validator(mode="after")
    def _one_way_to_compress(self) -> CoremlOptions:
        both = sorted(set(self.palettize) & set(self.quantize))
        if both:
            raise ValueError(f"palettize and quantize are both given for {both[0]}; choose one")
        if "int4" in self.quantize.values() and self.deployment_target in BEFORE_18:
            raise ValueError(
                f"int4 needs --deployment-target iOS18, macOS15 or later, not {self.deployment_target}"
            )
        return self

    def compression(self, component: str) -> str | None:
        """How a component's weights are compressed: `palette6`, `palette-mixed4.5`, `int8`; None: not at all.

        What is given for the component by its name comes before what is given for all.
        """
        for name in (component, ALL):
            if name in self.palettize:
                how = self.palettize[name]
                return f"palette-mixed{average_bits(how):g}" if how.startswith(MIXED) else f"palette{how}"
            if name in self.quantize:
                return self.quantize[name]
        return None


def average_bits(how: str) -> float:
    """The number of `mixed:4.5`.

    Raises:
        ValueError: It is none, or not one that a mixture of palettes can have.
    """
    text = how.removeprefix(MIXED)
    try:
        average = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no average number of bits; try {MIXED}4.5") from None
    if not PALETTE_BITS[0] <= average <= PALETTE_BITS[-1]:
        raise ValueError(f"an average of {text} bits lies outside {PALETTE_BITS[0]} to {PALETTE_BITS[-1]}")
    return average
