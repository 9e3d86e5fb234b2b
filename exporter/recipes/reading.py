"""Reads a recipe; every complaint names the line.

PyYAML's composed nodes keep their places, so a value that pydantic refuses is found again by its path.
Anchors that multiply (the "billion laughs") are bounded by the number of nodes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from exporter.errors import InputError, UsageError
from exporter.recipes.model import UNFILLED, VARIABLE, Publish, Recipe, Section, Verify
from exporter.recipes.places import Places

MAX_BYTES = 1_000_000
MAX_NODES = 20_000


class RecipeError(InputError):
    """A recipe that cannot be used; the message names the file and the line."""


def read(path: str | Path, overrides: Sequence[str] = (), by: str = "--set") -> Recipe:
    """A recipe from a YAML file.

    Args:
        path: The file.
        overrides: `key=value`; keys with dots reach inside (`options.dtype=float16`), and the name of
            a variable sets it. Values are read as YAML.
        by: What messages call an override.

    Raises:
        RecipeError: It is not there, no YAML, or not a recipe; with the line.
        UsageError: An override that is no `key=value`.
    """
    path = Path(path).expanduser()
    hint = "`exporter recipe list` shows those there are."
    return parse(read_text(path, "recipe", hint), str(path), overrides, by)


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


def parse(text: str, name: str, overrides: Sequence[str] = (), by: str = "--set") -> Recipe:
    """A recipe from YAML text; `name` is what messages call it. Raises as `read`."""
    root, data = load(text, name)
    given = {_override(data, override, by): f"{by} {override.partition('=')[0]}" for override in overrides}
    places = Places(name, root, given)
    try:
        recipe = Recipe.model_validate(data, context=UNFILLED)
    except ValidationError as error:
        hint = "`exporter recipe schema` lists the keys."
        raise explained(error, places, hint, (Recipe, Verify, Publish), data.get("variables")) from error
    _check_variables(recipe.placed(places))
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
            kind = key_node.tag.rpartition(":")[2]
            if kind not in ("str", "merge"):
                raise yaml.constructor.ConstructorError(
                    None, None, f"YAML reads the key {key} as {kind}: put it in quotes", key_node.start_mark
                )
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


def _override(data: dict[str, Any], override: str, by: str) -> tuple[str, ...]:
    """Put a value in its place, and say where that is."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UsageError(f"{by} {override!r} is not KEY=VALUE, for example options.dtype=float16.")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{by} {key}: the value {text!r} cannot be read.") from error
    variables = data.get("variables")
    if isinstance(variables, dict) and key in variables:
        variables[key] = value
        return ("variables", key)
    place: Any = data
    *path, last = key.split(".")
    for part in path:
        place = place.setdefault(part, {}) if isinstance(place, dict) else None
    if not isinstance(place, dict):
        raise UsageError(f"{by} {key}: there is nothing inside {'.'.join(path)!r}.")
    place[last] = value
    matrix = data.get("matrix")
    axis = last if path in ([], ["options"]) else None
    if isinstance(matrix, dict) and axis in matrix:
        del matrix[axis]  # what was set by hand is no longer varied
    return (*path, last)


def explained(
    error: ValidationError,
    places: Places,
    hint: str,
    kinds: Sequence[type[Section]],
    variables: Any = None,
) -> RecipeError:
    """What pydantic found, in one sentence with the place.

    Args:
        hint: Where the keys are listed.
        kinds: Whose keys a misspelt one may have been meant for.
        variables: Names that `--set` takes as well.
    """
    found = error.errors()
    # A misspelt key leaves another one missing; the misspelt one is what there is to see.
    first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
    path = path_of(first)
    key = ".".join(str(part) for part in path)[:200]
    where = places.of(path)
    if first["type"] == "extra_forbidden":
        known = [name for kind in kinds for name in kind.model_fields]
        known += [str(name) for name in variables] if isinstance(variables, Mapping) else []
        close = difflib.get_close_matches(str(path[-1]), known, n=1)
        suggestion = f"Did you mean {close[0]}? " if close else ""
        return RecipeError(f"{where}: there is no key {key!r}.", hint=suggestion + hint)
    if first["type"] == "missing":
        return RecipeError(f"{where}: the key {key!r} is missing.")
    if path[:1] == ("variables",) and len(path) == 2:
        return RecipeError(f"{where}: {key}: a variable is one word or number, true or false.")
    return RecipeError(f"{where}: {key}: {reason_of(first)}.")


def path_of(details: Any) -> tuple[Any, ...]:
    """Where pydantic found something, without the names of the types that it tried."""
    kinds = ("str", "int", "float", "bool")
    return tuple(
        part
        for part in details["loc"]
        if not (isinstance(part, str) and (part in kinds or part.startswith(("dict[", "list["))))
    )


def reason_of(details: Any) -> str:
    """What pydantic says of it, to stand in a sentence."""
    reason = str(details["msg"]).removeprefix("Value error, ")
    return f"{reason[:1].lower()}{reason[1:]}"


def _check_variables(recipe: Recipe) -> None:
    known = {*recipe.variables, *recipe.matrix}
    for path, text in _strings(recipe.said(), ()):
        for variable in VARIABLE.findall(text):
            if variable not in known:
                have = ", ".join(sorted(known)) or "none"
                close = difflib.get_close_matches(variable, known, n=1)
                raise RecipeError(
                    f"{recipe.where(path)}: ${{{variable}}} is no variable of the recipe; there are: {have}.",
                    hint=f"Did you mean ${{{close[0]}}}?" if close else None,
                )


def _strings(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _strings(part, (*path, key))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _strings(part, (*path, number))
