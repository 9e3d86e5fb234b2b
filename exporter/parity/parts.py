"""The base of everything in a report, and what a report says of quantised weights."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Part(BaseModel):
    """Base of everything in a report."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class WeightCheck(Part):
    """One quantised weight against the checkpoint's.

    Attributes:
        how: `int8_asym`, `int4_sym_group64` …
        steps: Largest distance in steps of its scale (at the end of the range half a step less).
        coarseness: Largest step ÷ the one its scheme gives the same weights.
        index: Where the largest distance is.
        sqnr_db: Of the whole tensor.
    """

    name: str
    how: str
    steps: float
    coarseness: float
    index: list[int]
    sqnr_db: float


class Compression(Part):
    """What is quantised in a component, and how exactly.

    Attributes:
        scheme: `int8_sym`, `int4_asym` …
        min_sqnr: The stated limit its outputs were judged by, in dB.
        sqnr_db: The worst output's.
    """

    scheme: str
    weights: list[WeightCheck] = Field(default_factory=list)
    min_sqnr: float | None = None
    sqnr_db: float | None = None
