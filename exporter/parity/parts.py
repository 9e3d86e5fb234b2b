"""The base of everything in a report, and what a report says of integers, decisions, modules and sizes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from exporter.artifact import Verdict


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


class ActivationCheck(Part):
    """The range that a layer's input is rounded in, against the one its calibration gives.

    Attributes:
        name: The layer's weight.
        low / high: In the file.
        wanted: What PyTorch finds: least and largest value, zero included, widened so that zero is met.
        steps: The farther of both ends, in steps of the wanted range.
    """

    name: str
    low: float
    high: float
    levels: int
    wanted: list[float]
    steps: float


class Compression(Part):
    """What is quantised in a component, and how exactly.

    Attributes:
        scheme: `int8_sym`, `int4_asym` …; `int8_activations` where activations are rounded too.
        min_sqnr: The stated limit its outputs were judged by, in dB.
        sqnr_db: The worst output's.
        activations: The ranges of activations in integers.
        calibrated_on: How many captured inputs these are from; None where activations are left as they are.
    """

    scheme: str
    weights: list[WeightCheck] = Field(default_factory=list)
    min_sqnr: float | None = None
    sqnr_db: float | None = None
    activations: list[ActivationCheck] = Field(default_factory=list)
    calibrated_on: int | None = None


class DecisionMeasurement(Part):
    """What one block merges in one case, by the float64 resemblances of the same tokens.

    Attributes:
        place: The module that gives the decision.
        tokens: Among which it is taken, of all rows.
        otherwise: Of those that went, how many float64 would have left, or sent elsewhere.
        regret: By how much the worst of them resembles less than what was not taken.
        noise: Largest error of PyTorch's own resemblances at the artifact's precision, at least its unit
            roundoff.
    """

    place: str
    tokens: int
    otherwise: int
    regret: float
    noise: float


class ModuleRow(Part):
    """One module in the bisection's table. `ratio` is error ÷ limit of that module."""

    module: str
    relative_l2: float | None
    floor: float | None
    ratio: float | None
    state: Literal["ok", "off", "not comparable"]
    note: str | None = None


class Bisection(Part):
    """Where a failing component first leaves the reference.

    Attributes:
        case: The case that was followed.
        first_bad: Diffusers path of the first module whose output is off while its inputs are not.
        explanation: In words.
        rows: The modules around it in order of execution.
    """

    case: str
    first_bad: str | None
    explanation: str
    rows: list[ModuleRow] = Field(default_factory=list)
    modules_compared: int = 0


class SizeReport(Part):
    """The verdict on one further size of an artifact that was baked for several.

    Attributes:
        static: `1x512x512`: pictures, height, width.
        report: Its own report, relative to the folder of this one.
    """

    static: str
    verdict: Verdict
    summary: str
    report: str
    components: dict[str, Verdict] = Field(default_factory=dict)
