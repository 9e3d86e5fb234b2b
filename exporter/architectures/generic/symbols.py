"""Dims from observations: which of them moved when the picture, the prompt or the batch did, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

Shape = tuple[int, ...]


class Unexplained(Exception):
    """A dim that follows none of the rules; the message says which and how it moved."""


@dataclass(frozen=True)
class Knobs:
    """What was asked of the pipeline in a run."""

    pictures: int
    height: int
    width: int


class Namer:
    """Names the dims of one component.

    Args:
        knobs: By run: `base`, and those runs that changed one thing (`batch`, `height`, `width`, `sequence`).
        shapes: By run, the shapes of every tensor in the same order.
        factor: Pixels per latent cell.

    Attributes:
        rows: Rows of a call to one picture.
        sequence: What the symbol `sequence` was in the base run, None where there is none.
    """

    def __init__(
        self, knobs: Mapping[str, Knobs], shapes: Mapping[str, Sequence[Shape]], factor: int
    ) -> None:
        self.knobs, self.shapes, self.factor = knobs, shapes, factor
        self.rows = 1
        self.sequence: int | None = None
        self._longer = 0
        moved = [self._values(t, a) for t, shape in enumerate(shapes["base"]) for a in range(len(shape))]
        for values in moved:
            changed = self._changed(values)
            if changed == {"batch"} and values["base"] % knobs["base"].pictures == 0:
                self.rows = max(self.rows, values["base"] // knobs["base"].pictures)
            if changed == {"sequence"} and self.sequence is None:
                self.sequence, self._longer = values["base"], values["sequence"]

    def name(self, tensor: int, axis: int) -> int | str:
        """The size, or the symbol, of one dim.

        Raises:
            Unexplained: It follows no rule.
        """
        values = self._values(tensor, axis)
        changed, base = self._changed(values), self.knobs["base"]
        if not changed:
            return values["base"]
        if changed == {"batch"}:
            more = self.knobs["batch"].pictures - base.pictures
            slope = Fraction(values["batch"] - values["base"], more * self.rows)
            return self._symbol("batch", slope, values["base"] - slope * base.pictures * self.rows)
        if changed == {"sequence"}:
            assert self.sequence is not None
            slope = Fraction(values["sequence"] - values["base"], self._longer - self.sequence)
            return self._symbol("sequence", slope, values["base"] - slope * self.sequence)
        for side in ("height", "width"):
            if changed == {side}:
                before, after = getattr(base, side), getattr(self.knobs[side], side)
                slope = Fraction(values[side] - values["base"], after - before)
                offset = values["base"] - slope * before
                if offset == 0 and slope == Fraction(1, self.factor) and self.factor > 1:
                    return f"latent_{side}"
                return self._symbol(side, slope, offset)
        if changed == {"height", "width"}:
            taller, wider = self.knobs["height"], self.knobs["width"]
            slope = Fraction(values["height"] - values["base"], (taller.height - base.height) * base.width)
            offset = values["base"] - slope * base.height * base.width
            if values["width"] == slope * wider.width * base.height + offset:
                return self._symbol("area", slope, offset)
        raise Unexplained(f"moves with {' and '.join(sorted(changed))} by no simple rule ({values})")

    def _values(self, tensor: int, axis: int) -> dict[str, int]:
        return {run: shapes[tensor][axis] for run, shapes in self.shapes.items()}

    @staticmethod
    def _changed(values: Mapping[str, int]) -> set[str]:
        return {run for run, value in values.items() if value != values["base"]}

    @staticmethod
    def _symbol(knob: str, slope: Fraction, offset: Fraction) -> str:
        if slope <= 0 or offset.denominator != 1:
            raise Unexplained(f"moves with {knob} by no simple rule")
        name = knob
        if slope.numerator != 1:
            name += f"_times_{slope.numerator}"
        if slope.denominator != 1:
            name += f"_over_{slope.denominator}"
        if offset:
            name += f"_{'plus' if offset > 0 else 'minus'}_{abs(offset)}"
        return name
