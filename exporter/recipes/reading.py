"""Reads a recipe; every complaint names the line.

PyYAML's composed nodes keep their places, so a value that pydantic refuses is found again by its path.
Anchors that multiply (the "billion laughs") are bounded by the number of nodes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from exporter.errors import InputError, UsageError
from exporter.recipes.model import Recipe

MAX_BYTES = 1_000_000
MAX_NODES = 20_000
VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)\}")


class RecipeError(InputError):
    """A recipe that cannot be used; the message names the file and the line."""


def read(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from a YAML file.

    Args:
        path: The file.
        overrides: `key=value`; keys with dots reach inside (`options.dtype=float16`), and the name of
            a variable sets it. Values are read as YAML.

    Raises:
        RecipeError: It is not there, no YAML, or not a recipe; with the line.
        UsageError: An override that is no `key=value`.
    """
    path = Path(path).expanduser()
    hint = "`exporter recipe list` shows those there are."
    return parse(read_text(path, "recipe", hint), str(path), overrides)


def read_text(path: Path, kind: str, hint: str | None = None) -> str:
    """The text of a YAML file; `kind` is what messages call it.

    Raises:
        RecipeError: It is not there, too large, or not UTF-8.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{path} is larger than a {kind} can be ({MAX_BYTES:,} bytes).")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RecipeError(f"The {kind} {path} cannot be read: {why}.", hint=hint) from error


def parse(text: str, name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from YAML text; `name` is what messages call it. Raises as `read`."""
    root, data = load(text, name)
    for override in overrides:
        _override(data, override)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise explained(error, root, name, "`exporter recipe schema` lists the keys.") from error
    _check_variables(recipe, name, text)
    return recipe


def load(text: str, name: str, kind: str = "recipe") -> tuple[yaml.Node, dict[str, Any]]:
    """YAML text as nodes, which know their lines, and as values.

    Raises:
        RecipeError: It is not YAML, no mapping, too large, or names a key twice; with the line.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _bounded(root, name)
        data = yaml.load(text, Loader=_Unique)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{name}{line}: not YAML: {error.problem or error.context}.") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise RecipeError(f"{name}: not YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{name}: a {kind} is a mapping of keys to values.")
    assert root is not None
    return root, data


class _Unique(yaml.SafeLoader):
    """Refuses a key that stands twice; YAML forbids it and PyYAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is one word, not a list or a mapping", key_node.start_mark
                )
            key = key_node.value
            if key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _bounded(root: yaml.Node | None, name: str) -> None:
    """Count nodes as they would be expanded, aliases included."""
    count, stack = 0, [root]
    while stack:
        node = stack.pop()
        count += 1
        if count > MAX_NODES:
            raise RecipeError(f"{name}: too large for a recipe (more than {MAX_NODES:,} values).")
        if isinstance(node, yaml.MappingNode):
            stack += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            stack += node.value


def _override(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UsageError(f"--set {override!r} is not KEY=VALUE, for example options.dtype=float16.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {key}: the value {text!r} cannot be read.") from error
    variables = data.get("variables")
    if isinstance(variables, dict) and key in variables:
        variables[key] = value
        return
    place: Any = data
    *path, last = key.split(".")
    for part in path:
        place = place.setdefault(part, {}) if isinstance(place, dict) else None
    if not isinstance(place, dict):
        raise UsageError(f"--set {key}: there is nothing inside {'.'.join(path)!r}.")
    place[last] = value
    matrix = data.get("matrix")
    axis = last if path in ([], ["options"]) else None
    if isinstance(matrix, dict) and axis in matrix:
        del matrix[axis]  # what was set by hand is no longer varied


def explained(error: ValidationError, root: yaml.Node, name: str, hint: str) -> RecipeError:
    """What pydantic found, in one sentence with the line; `hint` tells where the keys are listed."""
    first = error.errors()[0]
    path = [
        part
        for part in first["loc"]
        if not (isinstance(part, str) and part in ("str", "int", "float", "bool"))
    ]
    key = ".".join(str(part) for part in path)
    where = f"{name} line {line_of(root, path)}"
    if first["type"] == "extra_forbidden":
        return RecipeError(f"{where}: there is no key {key!r}.", hint=hint)
    if first["type"] == "missing":
        return RecipeError(f"{where}: the key {key!r} is missing.")
    reason = first["msg"].removeprefix("Value error, ")
    return RecipeError(f"{where}: {key}: {reason[:1].lower()}{reason[1:]}.")


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


def _check_variables(recipe: Recipe, name: str, source: str) -> None:
    known = {*recipe.variables, *recipe.matrix}
    lines = source.splitlines()
    for text in _strings(recipe.model_dump(exclude={"variables"})):
        for variable in VARIABLE.findall(text):
            if variable not in known:
                have = ", ".join(sorted(known)) or "none"
                used = f"${{{variable}}}"
                line = next(
                    (n for n, words in enumerate(lines, 1) if used in (" " + words).partition(" #")[0]), None
                )
                where = f"{name} line {line}" if line else name  # none: it came by --set
                raise RecipeError(f"{where}: {used} is no variable of the recipe; there are: {have}.")


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for part in value.values() for text in _strings(part)]
    if isinstance(value, list | tuple):
        return [text for part in value for text in _strings(part)]
    return []
