"""What a parsed program is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from exporter.targets.coreml.interpreter.values import Value


@dataclass(frozen=True)
class Step:
    """One operation, ready to run.

    Attributes:
        inputs: Parameter → name of a value, a tuple of names, or a constant (`Given`).
        outputs: (name, dtype, shape) as declared.
        frees: Values that nothing reads after this step.
    """

    kind: str
    name: str
    inputs: dict[str, Any]
    outputs: tuple[tuple[str, str, tuple[int | None, ...]], ...]
    frees: tuple[str, ...] = ()

    def reads(self) -> Iterator[str]:
        """Names of the values it takes."""
        for bound in self.inputs.values():
            for item in bound if isinstance(bound, tuple) else (bound,):
                if isinstance(item, str):
                    yield item


@dataclass(frozen=True)
class Given:
    """A constant that stands in an operation itself."""

    value: Value
