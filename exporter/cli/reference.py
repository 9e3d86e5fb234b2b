"""Writes `README.md` beside this file from the commands' own help: `python -m exporter.cli.reference`.

A test compares the file with `render()`, so help and documentation cannot drift apart.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from exporter.cli import cli
from exporter.cli._group import HELP_WIDTH

PATH = Path(__file__).with_name("README.md")

INTRODUCTION = """\
# The command line

Written by `python -m exporter.cli.reference` from the help of the commands; edit the help, not this file.

Results go to stdout, progress and remarks to stderr. `--json` prints exactly one JSON document on
stdout, errors included (`{"error": {"type", "message", "hint", "exit_code"}}`). Shell completion:
`eval "$(_EXPORTER_COMPLETE=bash_source exporter)"` (or `zsh_source`, `fish_source`).
Tracebacks are shown with `EXPORTER_DEBUG=1`.
"""


def render() -> str:
    """The page. Depends on nothing but the commands: the width is fixed."""
    sections = [INTRODUCTION, _section("exporter", cli, None)]
    root = _context(cli, "exporter", None)
    for name in cli.list_commands(root):
        verb = cli.get_command(root, name)
        assert verb is not None
        sections.append(_section(f"exporter {name}", verb, root))
    return "\n".join(sections)


def _context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    return click.Context(
        command,
        info_name=name,
        parent=parent,
        terminal_width=HELP_WIDTH,
        max_content_width=HELP_WIDTH,
        color=False,
        help_option_names=["-h", "--help"],
    )


def _section(title: str, command: click.Command, parent: click.Context | None) -> str:
    name = title.removeprefix("exporter ") if parent is not None else title
    text = command.get_help(_context(command, name, parent))
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return f"## {title}\n\n```text\n{lines}\n```\n"


def main() -> None:
    """Write the page, or with `--check` exit with 1 when it is out of date."""
    text = render()
    if "--check" in sys.argv[1:]:
        if not PATH.is_file() or PATH.read_text(encoding="utf-8") != text:
            sys.exit(f"{PATH.name} is out of date: run `python -m exporter.cli.reference`.")
        return
    PATH.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
