"""Begins the module of a pipeline family and its tests, in a source checkout."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import DestinationError, UsageError

TEMPLATES = {
    "exporter/architectures/{name}.py": "family.py.j2",
    "tests/architectures/test_{name}.py": "test_family.py.j2",
}
REGISTER = "exporter/architectures/__init__.py"
OPENING = "FAMILIES = {\n"


@dataclass(frozen=True)
class Scaffold:
    """What was written, relative to the checkout, and what to do next."""

    root: Path
    written: tuple[str, ...]
    changed: tuple[str, ...]
    following: tuple[str, ...]


def new_architecture(name: str, pipeline_class: str, root: Path | None = None) -> Scaffold:
    """Write a family's module and test, and enter its pipeline class into `FAMILIES`.

    Args:
        name: Of the module (`my_family`).
        pipeline_class: As in `model_index.json` (`MyFamilyPipeline`).
        root: The checkout; None looks upwards from the working directory.

    Raises:
        UsageError: No name of a module or class, or one that is known; no source checkout.
        DestinationError: A file is there already; nothing is then written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from exporter.artifact import write_text_atomic

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UsageError(f"{name!r} is no name of a module.", hint="Try small letters: my_family.")
    if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", pipeline_class):
        raise UsageError(f"{pipeline_class!r} is no name of a class.", hint="Try MyFamilyPipeline.")
    base = checkout(root)
    files = {place.format(name=name): template for place, template in TEMPLATES.items()}
    there = next((file for file in files if (base / file).exists()), None)
    if there is not None:
        raise DestinationError(f"{there} exists and is not overwritten.", hint="Choose another name.")
    register = (base / REGISTER).read_text(encoding="utf-8")
    if f'"{pipeline_class}"' in register:
        raise UsageError(f"{pipeline_class} has a module already: see FAMILIES in {REGISTER}.")
    if OPENING not in register:
        raise UsageError(f"{REGISTER} has no line {OPENING.strip()!r} to enter the family after.")
    engine = Environment(
        loader=PackageLoader("exporter.scaffold", "."), undefined=StrictUndefined,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    title = name.replace("_", " ").capitalize()
    for file, template in files.items():
        text = engine.get_template(template).render(name=name, pipeline_class=pipeline_class, title=title)
        write_text_atomic(base / file, text)
    entry = f'{OPENING}    "{pipeline_class}": "exporter.architectures.{name}",\n'
    write_text_atomic(base / REGISTER, register.replace(OPENING, entry, 1))
    return Scaffold(
        root=base,
        written=tuple(files),
        changed=(REGISTER,),
        following=(
            f"python -m pytest tests/architectures/test_{name}.py",
            "Then follow “Add a family” in exporter/architectures/README.md.",
        ),
    )


def checkout(root: Path | None) -> Path:
    """The source checkout at or above a folder.

    Raises:
        UsageError: There is none: an installed package has no tests to add to.
    """
    start = (root or Path.cwd()).expanduser().absolute()
    for folder in (start, *start.parents) if root is None else (start,):
        if (folder / REGISTER).is_file() and (folder / "tests" / "architectures").is_dir():
            return folder
    raise UsageError(
        f"{start} is in no source checkout of exporter, where families are added.",
        hint="Clone the repository and run this in it.",
    )
