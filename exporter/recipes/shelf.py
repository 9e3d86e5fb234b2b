"""The recipes that come with the package, by name."""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import InputError
from exporter.recipes.reading import RecipeError, read

BATCHES = "batch"


class UnknownRecipe(RecipeError):
    """No recipe of that name: what is wrong is the request, not a recipe."""

    exit_code = 2


@dataclass(frozen=True)
class Shelved:
    """A recipe on the shelf: `onnx/float16`, its file, and when to use it."""

    name: str
    path: Path
    description: str


def folders() -> list[Path]:
    """Where recipes lie: beside the package in a checkout, below the environment's `share` when installed."""
    checkout = Path(__file__).resolve().parents[2] / "recipes"
    installed = Path(sys.prefix) / "share" / "exporter" / "recipes"
    return [folder for folder in (checkout, installed) if folder.is_dir()]


def _recipes(folder: Path) -> list[Path]:
    """The files of recipes; matrices of `exporter batch` lie on the same shelf, in a folder of their own."""
    return [p for p in sorted(folder.rglob("*.yaml")) if p.relative_to(folder).parts[0] != BATCHES]


def shelf() -> list[Shelved]:
    """All of them, by name."""
    found: dict[str, Shelved] = {}
    for folder in folders():
        for path in _recipes(folder):
            name = path.relative_to(folder).with_suffix("").as_posix()
            try:
                description = read(path).description
            except InputError as error:
                description = f"broken: {error}"
            found.setdefault(name, Shelved(name, path, description))
    return [found[name] for name in sorted(found)]


def find(name: str) -> Path:
    """The file of a recipe: a path, or a name on the shelf; its last part is enough where only one has it.

    Raises:
        UnknownRecipe: There is none, or several.
    """
    path = Path(name).expanduser()
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        return path
    there = [recipe for folder in folders() for recipe in _recipes(folder)]
    names = {
        p: next(p.relative_to(f) for f in folders() if p.is_relative_to(f)).with_suffix("") for p in there
    }
    exact = [p for p, known in names.items() if known.as_posix() == name]
    short = [p for p, known in names.items() if known.name == name]
    if exact or len(short) == 1:
        return (exact or short)[0]
    if short:
        raise UnknownRecipe(
            f"There are several recipes {name!r}: {', '.join(names[p].as_posix() for p in short)}."
        )
    close = _close(name, [known.as_posix() for known in names.values()])
    suggestion = f"Did you mean {' or '.join(close)}? " if close else ""
    raise UnknownRecipe(
        f"There is no recipe {name!r}.", hint=suggestion + "`exporter recipe list` shows those there are."
    )


def _close(name: str, known: list[str]) -> list[str]:
    """What a misspelt name was meant for: a whole one, or else last parts."""
    if close := difflib.get_close_matches(name, known, n=1, cutoff=0.75):
        return close
    last = difflib.get_close_matches(name, [each.rpartition("/")[2] for each in known], n=1)
    return [each for each in known if each.rpartition("/")[2] in last][:3]
