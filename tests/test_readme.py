"""The README is read by newcomers and by nobody who would notice that it is wrong; so this does."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "exporter" / "CHANGELOG.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a line."""
    lines = README[README.index(heading) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| ---"))
    found = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def commands() -> list[list[str]]:
    """Every `exporter …` command line of the README's shell blocks and sentences."""
    text = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
    text += "\n" + "\n".join(re.findall(r"`(exporter [a-z][^`]*)`", README))
    lines = [line.split("#")[0].strip().removeprefix(".venv/bin/") for line in text.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("exporter ")]


def test_exit_codes_are_those_of_the_command_line() -> None:
    from exporter.cli._errors import EXIT_CODES

    assert {int(code): meaning for code, meaning in rows("The exit code of every command")} == EXIT_CODES


def test_every_target_is_in_the_table() -> None:
    from exporter.targets import get_target, target_names

    table = {row[1].strip("`"): row for row in rows("## Targets")}
    assert sorted(table) == target_names()
    for name, row in table.items():
        target = get_target(name, require_backend=False)
        assert row[0] == target.title
        assert row[2] == f"`{target.package}`"


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_parses(words: list[str]) -> None:
    from exporter.cli import cli

    assert words
    # Click remembers a command's help flags from the first context it was in: give it the real one.
    with click.Context(cli, **cli.context_settings) as parent:
        verb = cli.get_command(parent, words[0])
        assert verb is not None, f"there is no command {words[0]}"
        verb.make_context(words[0], words[1:], parent=parent, resilient_parsing=False)


def test_the_commands_were_found() -> None:
    found = {words[0] for words in commands()}
    assert {"convert", "run", "verify", "inspect", "doctor"} <= found


def test_python_example_uses_what_there_is() -> None:
    import exporter

    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    used = {
        node.attr
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "exporter"
    }
    assert used and used <= set(exporter.__all__)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    there = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", README, re.MULTILINE)) <= there


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), f"README links {link}, which is not there"


def test_picture_is_small() -> None:
    assert 20_000 < (ROOT / "exporter" / "demo" / "demo-page.png").stat().st_size < 300_000


def test_changelog_has_this_version() -> None:
    from exporter import __version__

    assert re.search(rf"^## {re.escape(__version__)}\b", CHANGELOG, re.MULTILINE)
