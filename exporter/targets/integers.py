"""What targets and the verifier tell each other about numbers that are stored or computed as integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class QuantisedWeight:
    """A quantised weight, read back from the file that will be shipped.

    Attributes:
        name: As the checkpoint stores it (`conv_in.weight`).
        values: What the runtime computes with, float32, in the parameter's shape.
        step: Distance between neighbouring codes, float32, of the same shape.
        edge: Where the code is the first or the last of its range: clipping may have moved the value.
        palette: Of a weight whose codes are places in a table: its numbers, ascending. Step and edge then
            say nothing.
    """

    name: str
    values: np.ndarray
    step: np.ndarray
    edge: np.ndarray
    palette: np.ndarray | None = None


@dataclass(frozen=True)
class RoundedActivation:
    """What the file itself asks to be rounded to integers before it meets a weight.

    Attributes:
        name: The weight, as the checkpoint stores it.
        low / high: The range; NaN where the file rounds in another way than by one range.
        levels: Numbers in that range.
    """

    name: str
    low: float
    high: float
    levels: int


@dataclass(frozen=True)
class Calibration:
    """The run of the reference whose inputs an export is calibrated with.

    Attributes:
        prompts: What is painted; None leaves the choice to whoever runs it.
        steps / seed: Of each picture.
        samples: Steps of each picture whose inputs are taken.
        inputs: By component: the captured inputs, once they are there.
        record: For the manifest: what was run.
    """

    prompts: tuple[str, ...] | None
    steps: int
    seed: int
    samples: int
    inputs: Mapping[str, Sequence[Mapping[str, np.ndarray]]] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
