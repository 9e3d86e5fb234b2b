"""Decisions that a graph takes by comparing numbers: shown by the artifact, told to the reference.

Two resemblances that are equal to the last digit sort one way in one arithmetic and another way in the next.
Both are honest, and what follows is not comparable; so a reference can be told what an artifact decided.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exporter.architectures.base import Component

DECIDES = "decides"
"""Last part of the path of a module that gives a decision: an int64 tensor."""


@dataclass(frozen=True)
class Decisions:
    """What a component decides.

    Attributes:
        paths: Of the modules that give a decision: `[batch, tokens]` int64, for every token of the picture
            its place among those that are left.
        told: Of the component, the reference that takes decisions by these names beside its inputs, and by
            itself takes those that it is not told. It also gives `likeness_of(path)` for each:
            `[batch, 3, tokens that may go]`, the highest resemblance of each, that to the one it became a
            part of, and 1 where it did (else 0, and both resemblances are the highest). NaN where what it
            was told is no decision.
    """

    paths: tuple[str, ...]
    told: Callable[[Component], Component]


def likeness_of(path: str) -> str:
    """The output that says how good a decision is."""
    return f"likeness.{path}"


def is_decision(path: str) -> bool:
    """Whether a module's output is a decision."""
    return path.rpartition(".")[2] == DECIDES
