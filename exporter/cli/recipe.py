"""`exporter recipe`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from exporter.cli._group import Command
from exporter.cli._output import Output
from exporter.cli._show import bytes_text, seconds_text, table
from exporter.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from exporter.recipes import Row

CHANGED = {"show", "check", "run", "diff"}
"""Actions that read recipes, which `--set` changes."""
TAKES = {"list": 0, "schema": 0, "show": 1, "check": 1, "run": 1, "from-manifest": 1, "diff": 2}


@click.command(
    "recipe",
    cls=Command,
    examples=(
        ("The recipes that come with the package", "exporter recipe list"),
        ("What one says, and the conversions it stands for", "exporter recipe show onnx/float16"),
        ("Whether it can be run here; nothing is written", "exporter recipe check onnx/float16"),
        (
            "Run it on another model",
            "exporter recipe run onnx/float16 --set model=./my-model --set output=my-model-onnx",
        ),
        ("The recipe that makes an artifact again", "exporter recipe from-manifest shapes-onnx"),
        ("What differs between two", "exporter recipe diff onnx/float16 ./mine.yaml"),
        ("A JSON Schema for editors", "exporter recipe schema"),
    ),
)
@click.argument("action", type=click.Choice(list(TAKES)))
@click.argument("names", nargs=-1, metavar="[RECIPE|ARTIFACT]...")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE",
    help="Change a key (options.dtype=float16) or a variable of the recipe; repeatable.",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace artifacts that stand at the destinations.")
@click.pass_obj
def command(
    output: Output,
    /,
    action: str,
    names: tuple[str, ...],
    overrides: tuple[str, ...],
    overwrite: bool,
) -> int:
    """List, show, check, run or compare recipes: YAML files that say what to convert, and how.

    RECIPE is a file or a name on the shelf. A recipe with a matrix stands for every combination of its
    values; one that fails does not keep the others from finishing, and the exit code is that of the
    first one that did not pass.
    """
    if len(names) != TAKES[action]:
        count = f"{TAKES[action] or 'no'} name{'' if TAKES[action] == 1 else 's'}"
        raise UsageError(f"`exporter recipe {action}` takes {count}, not {len(names)}.")
    if overrides and action not in CHANGED:
        raise UsageError(f"--set does nothing in `exporter recipe {action}`: leave it out.")
    if overwrite and action != "run":
        raise UsageError(f"--overwrite does nothing in `exporter recipe {action}`: leave it out.")
    actions: dict[str, Callable[[], int]] = {
        "list": lambda: _list(output),
        "schema": lambda: _schema(output),
        "show": lambda: _show(output, names[0], overrides),
        "check": lambda: _check(output, names[0], overrides),
        "run": lambda: _run(output, names[0], overrides, overwrite),
        "from-manifest": lambda: _from_manifest(output, names[0]),
        "diff": lambda: _diff(output, names[0], names[1], overrides),
    }
    return actions[action]()


def _list(output: Output) -> int:
    from exporter.recipes import shelf

    found = shelf()
    rows = [(recipe.name, recipe.description) for recipe in found]
    output.result(
        {"recipes": [{"name": r.name, "path": r.path, "description": r.description} for r in found]},
        human=lambda console: console.print(table(("recipe", "when to use it"), rows)),
        quiet="\n".join(recipe.name for recipe in found),
    )
    return 0


def _schema(output: Output) -> int:
    from exporter.recipes import json_schema

    schema = json_schema()
    text = json.dumps(schema, indent=2)
    output.result(schema, human=lambda console: console.print(text, soft_wrap=True), quiet=text)
    return 0


def _show(output: Output, name: str, overrides: tuple[str, ...]) -> int:
    from exporter import recipes

    recipe = recipes.read(recipes.find(name), overrides)
    found = recipes.cells(recipe)
    # As it stands, with its comments; what was changed stands in no file.
    text = recipes.to_yaml(recipe) if overrides else recipes.find(name).read_text(encoding="utf-8").rstrip()

    def show(console: Console) -> None:
        console.print(text, soft_wrap=True)
        console.print()
        rows = [(cell.label, cell.target, cell.recipe.model, str(cell.output or "")) for cell in found]
        console.print(table(("conversion", "target", "model", "to"), rows))

    document = {
        "recipe": recipe,
        "cells": [{"label": c.label, "recipe": c.recipe, "output": c.output} for c in found],
    }
    output.result(document, human=show, quiet="\n".join(cell.label for cell in found))
    return 0


def _check(output: Output, name: str, overrides: tuple[str, ...]) -> int:
    from exporter import recipes

    recipe = recipes.read(recipes.find(name), overrides)
    with output.progress() as progress:
        progress.start(f"checking {recipe.name}")
        rows = recipes.check(recipe)
        progress.done()
    code = next((row.exit_code for row in rows if row.exit_code), 0)
    document = {"recipe": recipe.name, "rows": [row.as_dict() for row in rows], "exit_code": code}

    def show(console: Console) -> None:
        cells = [(row.label, row.target, "no" if row.error else "yes", bytes_text(row.bytes)) for row in rows]
        console.print(table(("conversion", "target", "can be run", "on disk>"), cells))
        _reasons(console, rows)

    output.result(document, human=show, quiet="no" if code else "yes")
    return code


def _run(output: Output, name: str, overrides: tuple[str, ...], overwrite: bool) -> int:
    from exporter import recipes

    recipe = recipes.read(recipes.find(name), overrides)
    with output.progress() as progress:
        result = recipes.run(recipe, overwrite=overwrite, progress=progress)

    def show(console: Console) -> None:
        rows = [
            (
                row.label,
                row.target,
                row.verdict or ("stopped" if row.error else "not verified"),
                bytes_text(row.bytes),
                seconds_text(row.seconds),
                row.output or "",
            )
            for row in result.rows
        ]
        console.print(table(("conversion", "target", "verdict", "size>", "time>", "artifact"), rows))
        _reasons(console, result.rows)

    verdicts = "\n".join(row.verdict or "stopped" for row in result.rows)
    output.result(result.as_dict(), human=show, quiet=verdicts)
    return result.exit_code


def _reasons(console: Console, rows: list[Row]) -> None:
    for row in rows:
        if row.error is not None:
            console.print(f"{row.label}: {row.error.message}", soft_wrap=True)
            if row.error.hint:
                console.print(f"  {row.error.hint}", soft_wrap=True)
        elif row.exit_code:
            console.print(f"{row.label}: {row.summary}", soft_wrap=True)


def _from_manifest(output: Output, artifact: str) -> int:
    from exporter import recipes
    from exporter.artifact import Artifact

    recipe = recipes.from_artifact(Artifact.open(artifact))
    text = recipes.to_yaml(recipe)
    output.result(recipe, human=lambda console: console.print(text, soft_wrap=True), quiet=text)
    return 0


def _diff(output: Output, a: str, b: str, overrides: tuple[str, ...]) -> int:
    from exporter import recipes

    one, two = (recipes.read(recipes.find(name), overrides) for name in (a, b))
    found = recipes.differences(one, two)
    rows = [(key, _text(left), _text(right)) for key, left, right in found]

    def show(console: Console) -> None:
        console.print(table(("key", a, b), rows) if rows else "They do not differ.")

    document: dict[str, Any] = {"differences": [{"key": k, "a": x, "b": y} for k, x, y in found]}
    output.result(document, human=show, quiet="different" if found else "same")
    return 0


def _text(value: Any) -> str:
    return "–" if value is None else str(value)
