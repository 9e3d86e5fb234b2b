"""Where the values of a recipe stand: a line of its file, or a `--set`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[Any, ...]


@dataclass(frozen=True)
class Places:
    """Of one recipe. Two recipes that say the same are equal wherever they stand.

    Attributes:
        name: What messages call the recipe.
        root: Its nodes, which know their lines; None for one that was made in Python.
        given: Path → what set it by hand (`--set verify.k`).
    """

    name: str = field(default="", compare=False)
    root: yaml.Node | None = field(default=None, compare=False, repr=False)
    given: Mapping[Path, str] = field(default_factory=dict, compare=False)

    def of(self, path: Sequence[Any]) -> str:
        """`r.yaml line 5`, or `r.yaml, --set verify.k` where it was set by hand."""
        for end in range(len(path), 0, -1):
            by = self.given.get(tuple(path[:end]))
            if by is not None:
                return f"{self.name}, {by}"
        return self.name if self.root is None else f"{self.name} line {line_of(self.root, path)}"


def line_of(root: yaml.Node, path: Sequence[Any]) -> int:
    """The line (from 1) of the deepest node of a path that is there."""
    node, line = root, root.start_mark.line
    for part in path:
        found = None
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(part)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = (node.value[part], node.value[part])
        if found is None:
            break
        line, node = found[0].start_mark.line, found[1]
    return line + 1
