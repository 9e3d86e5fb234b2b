"""What may stand in a matrix, and how one is read; every complaint names the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator

from exporter.batch.store import refusal
from exporter.recipes.model import Section
from exporter.recipes.places import Places, line_of
from exporter.recipes.reading import RecipeError, explained, load, read_text
from exporter.recipes.shelf import BATCHES, UnknownRecipe, folders

HINT = "exporter/batch/README.md lists the keys of a matrix."
MAX_ENTRIES = 1000
NAME = r"^[A-Za-z0-9][\w.-]*$"


class Model(Section):
    """One model.

    Attributes:
        model: As after `exporter convert`.
        name: Of its folders in the output; by default the last part of `model`.
        set: Keys of every recipe that differ for this model (`revision`, `loras`, `options.dtype`).
    """

    model: str = Field(min_length=1)
    name: str | None = Field(default=None, pattern=NAME)
    set: dict[str, Any] = Field(default_factory=dict)


class Use(Section):
    """One recipe.

    Attributes:
        recipe: A file, looked for beside the matrix first, or a name on the shelf.
        name: Of its folders in the output; by default the recipe's own name.
        set: Keys of the recipe that differ here.
    """

    recipe: str = Field(min_length=1)
    name: str | None = Field(default=None, pattern=NAME)
    set: dict[str, Any] = Field(default_factory=dict)


class Skip(Section):
    """A combination that is left out: the `name` of a model and the `name` of a recipe."""

    model: str
    recipe: str


class Matrix(Section):
    """Every model with every recipe.

    Attributes:
        name: Of the matrix; shown on the page.
        description: One sentence.
        models / recipes: A text each, or a mapping with what differs.
        set: Keys of all recipes that differ here; those of a recipe, and then of a model, go before them.
        skip: Combinations that are left out.
        collect: fsspec URL to which every finished artifact is sent, as `--collect`.
        keep: Whether an artifact stays on this disk when it is collected.
        split: Cells in parts, one for each folder of the model: `always` where that is the same, `never`, or
            `auto` where it helps on a cluster (exporter/batch/README.md has the rule).
    """

    name: str = Field(pattern=NAME)
    description: str = ""
    models: list[Model] = Field(min_length=1, max_length=MAX_ENTRIES)
    recipes: list[Use] = Field(min_length=1, max_length=MAX_ENTRIES)
    set: dict[str, Any] = Field(default_factory=dict)
    skip: list[Skip] = Field(default_factory=list)
    collect: str | None = None
    keep: bool = True
    split: Literal["auto", "never", "always"] = "auto"

    @field_validator("models", mode="before")
    @classmethod
    def _texts_are_models(cls, value: Any) -> Any:
        return _mappings(value, "model")

    @field_validator("recipes", mode="before")
    @classmethod
    def _texts_are_recipes(cls, value: Any) -> Any:
        return _mappings(value, "recipe")

    @field_validator("collect")
    @classmethod
    def _a_url_without_secrets(cls, value: str | None) -> str | None:
        problem = refusal(value) if value is not None else None
        if problem is not None:
            raise ValueError(problem)
        return value


def _mappings(value: Any, key: str) -> Any:
    return (
        [{key: one} if isinstance(one, str) else one for one in value] if isinstance(value, list) else value
    )


class MatrixFile:
    """A matrix with the places of its parts.

    Attributes:
        path: The file.
        matrix: What it says.
    """

    def __init__(self, path: Path, matrix: Matrix, root: yaml.Node) -> None:
        self.path, self.matrix, self._root = path, matrix, root

    def error(self, place: tuple[str | int, ...], message: str, hint: str | None = None) -> RecipeError:
        """An error that names the line of a part."""
        return RecipeError(f"{self.path} line {line_of(self._root, place)}: {message}", hint=hint)


def read(path: str | Path) -> MatrixFile:
    """A matrix from a YAML file, or by its name on the shelf (`batch/embedded`).

    Raises:
        RecipeError: It is not there, no YAML, or not a matrix; with the line.
    """
    path = find(str(path))
    root, data = load(read_text(path, "matrix"), str(path), "matrix")
    try:
        return MatrixFile(path, Matrix.model_validate(data), root)
    except ValidationError as error:
        raise explained(error, Places(str(path), root), HINT, (Matrix, Model, Use, Skip)) from error


def find(name: str) -> Path:
    """The file of a matrix."""
    path = Path(name).expanduser()
    if path.exists() or path.suffix in {".yaml", ".yml"}:
        return path
    for folder in folders():
        for shelved in (folder / f"{name}.yaml", folder / BATCHES / f"{name}.yaml"):
            if shelved.is_file() and shelved.parent == folder / BATCHES:
                return shelved
    shelved_names = sorted({path.stem for folder in folders() for path in (folder / BATCHES).glob("*.yaml")})
    raise UnknownRecipe(
        f"There is no matrix {name!r}.",
        hint=f"Name a YAML file, or one on the shelf ({', '.join(shelved_names)}). {HINT}",
    )


def override(values: dict[str, Any]) -> list[str]:
    """`{"options.dtype": "float16"}` as `recipes.read` takes it: JSON is YAML."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]
