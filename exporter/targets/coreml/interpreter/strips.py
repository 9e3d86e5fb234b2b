"""Attention a strip of queries at a time.

A package that spells attention out makes the scores of all queries and keys at once: at 64×64 latents 134 MB
for each head, written and read again by every operation on them. Between the product that makes them and the
product that uses them up nothing mixes two queries, so the same operations can run over some queries at a
time, in the processor's cache. Every value is still computed by its own operation, checked against its own
declaration, rounded to its own dtype and noted among the peaks; only how much of it exists at once differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from exporter.targets.coreml.interpreter.steps import Step

PRODUCTS = ("einsum", "matmul")
POINTWISE = ("mul", "real_div", "add", "sub", "cast")
SCORES = 1 << 18
"""Numbers of a strip of scores: 1 MB in float32, which a core's cache holds."""

Constant = Callable[[Any], Any]
"""What an input of a step is if it is a constant, else None."""


@dataclass(frozen=True)
class Strip:
    """Steps from one product to the next.

    Attributes:
        steps: The product that makes the scores, what is done to them, the product that uses them.
        axes: Where the queries lie in the output of each step.
        operand: Which operand of the first product holds them (0 or 1), and where.
        count: Of queries; `size` at a time.
        frees: Values that nothing reads afterwards.
    """

    steps: tuple[Step, ...]
    axes: tuple[int, ...]
    operand: tuple[int, int]
    count: int
    size: int
    frees: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[tuple[str, str, tuple[int | None, ...]], ...]:
        return self.steps[-1].outputs

    @property
    def inner(self) -> tuple[str, ...]:
        """Values that exist only in strips."""
        return tuple(step.outputs[0][0] for step in self.steps[:-1])

    def reads(self) -> Iterator[str]:
        inner = set(self.inner)
        return (name for step in self.steps for name in step.reads() if name not in inner)

    def cut(self, given: dict[str, Any], first: int, count: int) -> dict[str, Any]:
        """The inputs of the first product, with only some of the queries."""
        which, axis = self.operand
        if "values" in given:
            values = list(given["values"])
            values[which] = values[which].narrow(axis, first, count)
            return given | {"values": tuple(values)}
        name = "xy"[which]
        return given | {name: given[name].narrow(axis, first, count)}

    @staticmethod
    def fill(given: dict[str, Any], value: Any) -> dict[str, Any]:
        """The inputs of a later step, with the value of the one before it where that was absent."""
        return {
            name: tuple(value if item is None else item for item in bound) if isinstance(bound, tuple)
            else value if bound is None else bound
            for name, bound in given.items()
        }  # fmt: skip

    def ranges(self) -> Iterator[tuple[int, int]]:
        """(first, count) of every strip."""
        for first in range(0, self.count, self.size):
            yield first, min(self.size, self.count - first)


def with_strips(steps: Sequence[Step], outputs: set[str], constant: Constant) -> list[Step | Strip]:
    """The steps, those of large attentions drawn together where the last of them stood."""
    users: dict[str, list[int]] = {}
    for number, step in enumerate(steps):
        for name in step.reads():
            users.setdefault(name, []).append(number)
    found: dict[int, Strip] = {}
    taken: set[int] = set()
    for number, step in enumerate(steps):
        if step.kind in PRODUCTS and number not in taken:
            chain = _chain(steps, number, users, outputs, constant)
            strip = _strip([steps[i] for i in chain], constant) if chain else None
            if strip is not None:
                found[chain[-1]] = strip
                taken.update(chain)
    return [found.get(n, step) for n, step in enumerate(steps) if n in found or n not in taken]


def _chain(
    steps: Sequence[Step], first: int, users: dict[str, list[int]], outputs: set[str], constant: Constant
) -> list[int]:
    """Numbers of the steps from a product to the next one, each the only reader of the one before."""
    chain = [first]
    while True:
        name = steps[chain[-1]].outputs[0][0]
        readers = users.get(name, [])
        if len(readers) != 1 or name in outputs or len(steps[chain[-1]].outputs) != 1:
            return []
        step = steps[readers[0]]
        chain.append(readers[0])
        if step.kind in PRODUCTS:
            return chain if len(chain) > 2 and _operands(step).count(name) == 1 else []
        others = [bound for bound in step.inputs.values() if bound != name]
        if step.kind not in (*POINTWISE, "softmax") or any(_is_large(constant(o)) for o in others):
            return []


def _is_large(value: Any) -> bool:
    """Whether it is no constant, or one of more than one number."""
    return value is None or (hasattr(value, "numel") and value.numel() != 1)


def _operands(step: Step) -> tuple[Any, ...]:
    values = step.inputs.get("values") if step.kind == "einsum" else None
    return values if isinstance(values, tuple) else (step.inputs.get("x"), step.inputs.get("y"))


def _strip(steps: list[Step], constant: Constant) -> Strip | None:
    shapes = [step.outputs[0][2] for step in steps]
    if any(size is None for shape in shapes for size in shape) or len({len(s) for s in shapes}) != 1:
        return None
    rank = len(shapes[0])
    mixed = set()
    for step in steps[1:-1]:
        along = constant(step.inputs.get("axis")) if step.kind == "softmax" else rank
        if along is None:
            return None
        mixed.add(int(along) % rank if step.kind == "softmax" else rank)
    used = _operands(steps[-1]).index(steps[-2].outputs[0][0])
    kept = {axis % rank: out for which, axis, out in _free(steps[-1], constant, rank) if which == used}
    found = [
        (which, axis, out) for which, axis, out in _free(steps[0], constant, rank)
        if out in kept and out not in mixed
    ]  # fmt: skip
    if len(found) != 1:
        return None
    ((which, operand, axis),) = found
    count = int(shapes[0][axis] or 0)
    total = math.prod(int(size or 0) for size in shapes[0])
    if total < 2 * SCORES or not count:
        return None
    size = max(1, SCORES // (total // count))
    axes = (axis,) * (len(steps) - 1) + (kept[axis],)
    return Strip(tuple(steps), axes, (which, operand), count, size)


def _free(step: Step, constant: Constant, rank: int) -> list[tuple[int, int, int]]:
    """(operand, axis in it, axis in the output) of dims that one operand has and the output keeps."""
    if step.kind == "matmul":
        turned = [constant(step.inputs.get(name)) for name in ("transpose_x", "transpose_y")]
        x, y = (value is not None and bool(value) for value in turned)
        return [(0, -1 if x else -2, rank - 2), (1, -2 if y else -1, rank - 1)]
    equation = constant(step.inputs.get("equation"))
    if not isinstance(equation, str) or "." in equation or equation.count(",") != 1:
        return []
    operands, arrow, result = equation.replace(" ", "").partition("->")
    words = operands.split(",")
    return [
        (which, word.index(letter), result.index(letter))
        for which, word in enumerate(words)
        for letter in word
        if arrow and letter not in words[1 - which] and letter in result
    ]
