"""The Click group that imports a verb's module only when that verb is used, and the verb's own class."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn

import click

from exporter import __version__
from exporter.cli._errors import EXIT_CODES, ReaderGone, explain
from exporter.cli._output import Output

HELP_WIDTH = 100
"""Widest line of help; fixed so that the generated reference is the same everywhere."""

Example = tuple[str, str]
"""What it does, and the line to type."""


@dataclass(frozen=True)
class Verb:
    """One subcommand: the function `command` of the module `exporter.cli.<name>` (`_` for `-`)."""

    name: str
    summary: str


class WithExamples(click.Command):
    """A command whose help ends with examples, printed as they are (Click would re-wrap them)."""

    examples: tuple[Example, ...] = ()

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        with formatter.section("Examples"):
            for position, (what, line) in enumerate(self.examples):
                if position:
                    formatter.write("\n")
                formatter.write(f"  # {what}\n  {line}\n")


class Command(WithExamples):
    """A verb. Its function may return an exit code; None is 0.

    Args:
        examples: `(what it does, line to type)`, at least one.
    """

    def __init__(self, *args: Any, examples: Sequence[Example] = (), **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", {})
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)
        self.params += _output_flags()

    def invoke(self, ctx: click.Context) -> Any:
        output: Output = ctx.obj
        try:
            with output.guard():
                return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGone from error


class VerbGroup(click.Group, WithExamples):
    """The root: knows the verbs' names and summaries without importing them.

    Args:
        verbs: In the order of the help.
        examples: As for `Command`.
    """

    def __init__(self, *, verbs: Sequence[Verb], examples: Sequence[Example], **kwargs: Any) -> None:
        settings = {"help_option_names": ["-h", "--help"], "max_content_width": HELP_WIDTH}
        super().__init__(context_settings=settings, no_args_is_help=True, **kwargs)
        self.verbs = {verb.name: verb for verb in verbs}
        self.examples = tuple(examples)
        self.params += [
            click.Option(
                ["--version"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_print_version,
                help="Print the version and exit.",
            ),
            *_output_flags(),
        ]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.verbs:
            return None
        command: click.Command = import_module(f"exporter.cli.{cmd_name.replace('-', '_')}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb.name, verb.summary) for verb in self.verbs.values()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in EXIT_CODES.items()])

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run, report any error in one sentence, and exit with a code of the table."""
        arguments = list(sys.argv[1:] if args is None else args)
        output = Output.for_arguments(arguments)
        try:
            returned = super().main(
                arguments, prog_name or "exporter", complete_var, standalone_mode=False, obj=output, **extra
            )
            code = returned if isinstance(returned, int) else 0
            output.flush()
        except (SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            failure = explain(error)
            output.failure(failure)
            code = failure.exit_code
        sys.exit(code)


def _output_flags() -> list[click.Option]:
    """The flags that every command and the root take; they set up the `Output` and nothing else."""

    def flag(names: list[str], attribute: str, text: str) -> click.Option:
        def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
            if value and isinstance(ctx.obj, Output):
                setattr(ctx.obj, attribute, True)

        return click.Option(
            names, is_flag=True, is_eager=True, expose_value=False, callback=remember, help=text
        )

    return [
        flag(["--json"], "json", "Print exactly one JSON document on stdout, errors included."),
        flag(["-q", "--quiet"], "quiet", "Print only the result itself (a path, a verdict) and errors."),
        flag(["-v", "--verbose"], "verbose", "Let through what the libraries log and print."),
    ]


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"exporter {__version__}")
        ctx.exit()
