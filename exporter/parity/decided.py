"""Limits of what an artifact decides by comparing numbers. Runs nothing."""

from __future__ import annotations

import math
from statistics import median

from exporter.parity.schema import Case, ComponentReport, Run
from exporter.parity.stated import number


def typical_noise(run: Run) -> dict[str, float]:
    """Median noise of the resemblances in each place that decides."""
    values: dict[str, list[float]] = {}
    for case in run.cases:
        for decision in case.decisions:
            if math.isfinite(decision.noise):
                values.setdefault(decision.place, []).append(decision.noise)
    return {place: median(found) for place, found in values.items()}


def judge_decisions(case: Case, typical: dict[str, float], where: str, k: float) -> list[str]:
    """Decisions that rounding does not explain.

    Where two numbers are compared, each of which may be `k` times as far off as PyTorch's are, the one that
    is taken is at most twice that short of the other.

    Args:
        typical: `typical_noise` of the run.
        where: The run, in words.
    """
    excesses = []
    for decision in case.decisions:
        limit = 2 * k * max(decision.noise, typical.get(decision.place, 0.0))
        if not (decision.regret <= limit):
            block = decision.place.rpartition(".")[0]
            excesses.append(
                f"{case.label}{where}: {block} merges other tokens than it should: the resemblance of one is "
                f"{number(decision.regret)} below that of one it passed over, {limit:.3g} is allowed "
                f"(2 × {k:g} × the noise floor of a resemblance)"
            )
    return excesses


def decided_otherwise(component: ComponentReport) -> str:
    """For the sentence of a component that passes: how many decisions are those of another rounding."""
    found = [d for run in component.runs for case in run.cases for d in case.decisions]
    count, tokens = sum(d.otherwise for d in found), sum(d.tokens for d in found)
    if not count:
        return ""
    return (
        f"; {count} of {tokens} tokens are merged otherwise than in float64, by no more than rounding "
        "explains; truth and noise floor merge as the artifact does"
    )
