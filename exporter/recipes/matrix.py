"""From a recipe to the conversions it stands for: variables filled in, one cell a combination."""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from exporter.recipes.model import VARIABLE, Recipe, Scalar
from exporter.recipes.reading import RecipeError, path_of, reason_of

FILLED = re.compile(r"\{([A-Za-z_]\w*)\}")
DIRECT = ("target", "model", "revision", "variant")
MAX_CELLS = 1000
"""Axes multiply: a page of values makes more combinations than anybody can run."""


@dataclass(frozen=True)
class Cell:
    """One conversion of a recipe.

    Attributes:
        label: What tells it from its neighbours (`onnx float16`); the recipe's name when there is no matrix.
        axes: The matrix's values here.
        recipe: Without matrix and variables.
        output: Destination folder, or None for the usual place.
    """

    label: str
    axes: Mapping[str, Scalar]
    recipe: Recipe
    output: Path | None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def target(self) -> str:
        assert self.recipe.target is not None
        return self.recipe.target


def cells(recipe: Recipe) -> list[Cell]:
    """Every combination of the matrix, in the order in which its axes and values are written.

    Raises:
        RecipeError: No target, too many combinations, `{key}` in a path that is no key, or a variable whose
            value cannot stand where it is used.
    """
    names = list(recipe.matrix)
    count = math.prod(len(values) for values in recipe.matrix.values())
    if count > MAX_CELLS:
        raise RecipeError(
            f"{recipe.where(('matrix',))}: the matrix makes more than {MAX_CELLS} combinations.",
            hint="Leave out an axis, or values.",
        )
    found = [
        _cell(recipe, dict(zip(names, values, strict=True)))
        for values in itertools.product(*(recipe.matrix[name] for name in names))
    ]
    places: dict[Path, str] = {}
    for cell in found:
        if cell.output is not None and places.setdefault(cell.output, cell.label) != cell.label:
            raise RecipeError(
                f"{recipe.where(('output',))}: {places[cell.output]} and {cell.label} would both be "
                f"written to {cell.output}.",
                hint="Name the matrix's keys in `output`, for example artifacts/{name}-{target}.",
            )
    return found


def _cell(recipe: Recipe, axes: dict[str, Scalar]) -> Cell:
    values = _resolved(recipe, axes)
    axes = {key: values[key] for key in axes}
    raw = {key: value for key, value in recipe.said().items() if key not in ("variables", "matrix")}
    data = _substitute(raw, values)
    for key, value in axes.items():
        if key in DIRECT:
            data[key] = str(value)
        elif key not in recipe.variables and isinstance(data["options"], dict):  # else it is refused below
            data["options"][key] = value
    if not data["target"]:
        raise RecipeError(
            f"{recipe.where(('target',))}: the recipe {recipe.name} names no target.",
            hint="Add `target: onnx`, or a matrix.",
        )
    made = _validated(recipe, data, raw, values, axes)
    filled = {**values, "name": recipe.name, "target": made.target}
    output = Path(_fill(recipe, ("output",), made.output, filled)) if made.output else None
    if output is not None:
        made = made.model_copy(update={"output": str(output)})  # what the manifest keeps stands by itself
    elif axes:
        label = "-".join([recipe.name, *(_slug(v) for v in axes.values())])
        output = Path("artifacts") / label
    if made.publish is not None:
        repo = _fill(recipe, ("publish", "repo"), made.publish.repo, filled)
        made = made.model_copy(update={"publish": made.publish.model_copy(update={"repo": repo})})
    label = " ".join(str(v) for v in axes.values()) or recipe.name
    return Cell(label, axes, made, output)


def _resolved(recipe: Recipe, axes: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The variables and the matrix's values, which may be made of other variables themselves."""
    given = {**recipe.variables, **axes}
    done: dict[str, Scalar] = {}

    def resolve(name: str, inside: tuple[str, ...]) -> Scalar:
        if name in inside:
            raise RecipeError(f"{_source(recipe, name, axes)}: the variable {name} is made of itself.")
        if name not in done:
            value = given[name]
            if isinstance(value, str):
                needed = {each: resolve(each, (*inside, name)) for each in VARIABLE.findall(value)}
                value = _substitute(value, needed)
            done[name] = value
        return done[name]

    return {name: resolve(name, ()) for name in given}


def _source(recipe: Recipe, name: str, axes: Mapping[str, Scalar]) -> str:
    return recipe.where(("matrix" if name in axes else "variables", name))


def _validated(
    recipe: Recipe,
    data: dict[str, Any],
    raw: dict[str, Any],
    values: Mapping[str, Scalar],
    axes: Mapping[str, Scalar],
) -> Recipe:
    """The recipe with its variables filled in; a value of the wrong type is told before anything uses it."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        path = path_of(first)
        key = ".".join(str(part) for part in path)[:200]
        axis = len(path) == 1 and path[0] in DIRECT and path[0] in axes
        where = recipe.where(("matrix", *path) if axis else path)
        written = recipe.matrix[str(path[0])] if axis else _at(raw, path)
        used = dict.fromkeys(VARIABLE.findall(str(written)))
        told = "".join(
            f"; ${{{name}}} is {repr(values[name])[:100]} ({_source(recipe, name, axes)})" for name in used
        )
        raise RecipeError(f"{where}: {key}: {reason_of(first)}{told}.") from error


def _at(value: Any, path: Sequence[Any]) -> Any:
    """The deepest part of a path that is there."""
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            break
    return value


def _substitute(value: Any, variables: Mapping[str, Scalar]) -> Any:
    """`${name}` by its value; a string that is nothing else keeps the value's type."""
    if isinstance(value, str):
        whole = VARIABLE.fullmatch(value)
        if whole:
            return variables[whole[1]]
        return VARIABLE.sub(lambda found: str(variables[found[1]]), value)
    if isinstance(value, dict):
        return {key: _substitute(part, variables) for key, part in value.items()}
    if isinstance(value, list):
        return [_substitute(part, variables) for part in value]
    return value


def _fill(recipe: Recipe, path: Sequence[str], text: str, values: Mapping[str, Any]) -> str:
    def one(found: re.Match[str]) -> str:
        if found[1] not in values:
            close = difflib.get_close_matches(found[1], values, n=1)
            raise RecipeError(
                f"{recipe.where(path)}: {{{found[1]}}} in {text!r} is no key; "
                f"there are: {', '.join(values)}.",
                hint=f"Did you mean {{{close[0]}}}?" if close else None,
            )
        return _slug(values[found[1]])

    return FILLED.sub(one, text)


def _slug(value: Any) -> str:
    """A value as part of a file name: it cannot leave its folder."""
    return re.sub(r"[^\w.-]+", "-", str(value)).strip(".-") or "value"
