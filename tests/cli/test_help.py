"""Help is quick, complete and the same as the documentation."""

from __future__ import annotations

import resource
import shlex
import subprocess
import sys

import click
import pytest

from exporter import __version__
from exporter.cli import cli, reference
from exporter.cli._group import Command
from tests.cli.runner import environment, invoke, spawn

VERBS = list(cli.verbs)
HEAVY = ("torch", "numpy", "onnx", "onnxruntime", "openvino", "diffusers", "transformers", "pydantic", "PIL")


def verb(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli, **cli.context_settings), name)
    assert command is not None
    return command


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in VERBS)])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from exporter.cli import cli\n"
        "try:\n    cli.main(sys.argv[1:])\n"
        f"finally:\n    print('loaded:', *(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.strip()
    assert done.stderr.strip() == "loaded:"


def test_root_help_loads_no_verb() -> None:
    code = (
        "import sys\n"
        "from exporter.cli import cli\n"
        "try:\n    cli.main(['--help'])\n"
        f"finally:\n    print(*({VERBS!r}[i] for i in range({len(VERBS)}) "
        f"if 'exporter.cli.' + {VERBS!r}[i].replace('-', '_') in sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr.strip() == ""


def test_help_takes_less_than_three_tenths_of_a_second() -> None:
    """Processor time, which is the wall time of a machine that has nothing else to do."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "exporter", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert 0 < min(once() for _ in range(3)) < 0.3


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_examples_that_parse(name: str) -> None:
    command = verb(name)
    assert isinstance(command, Command)
    assert command.examples
    for what, line in command.examples:
        words = shlex.split(line)
        assert words[:2] == ["exporter", name]
        assert what in invoke(name, "--help").stdout and line in invoke(name, "--help").stdout
        command.make_context(
            name, words[2:], parent=click.Context(cli, **cli.context_settings)
        )  # raises on an unknown option


def test_root_examples_parse() -> None:
    for _, line in cli.examples:
        words = shlex.split(line)
        verb(words[1]).make_context(words[1], words[2:], parent=click.Context(cli, **cli.context_settings))


@pytest.mark.parametrize("name", VERBS)
def test_every_option_is_explained(name: str) -> None:
    options = [p for p in verb(name).params if isinstance(p, click.Option)]
    assert options
    assert [p.name for p in options if not p.help] == []


def test_every_verb_takes_the_output_flags() -> None:
    for name in VERBS:
        flags = {flag for p in verb(name).params for flag in p.opts}
        assert {"--json", "--quiet", "--verbose"} <= flags


def test_the_reference_is_up_to_date() -> None:
    written = reference.PATH.read_text(encoding="utf-8")
    assert written == reference.render(), "run `python -m exporter.cli.reference`"


def test_the_reference_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    narrow = reference.render()
    monkeypatch.setenv("COLUMNS", "300")
    assert reference.render() == narrow


def test_the_reference_check_sees_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["reference", "--check"])
    reference.main()
    monkeypatch.setattr(verb("doctor"), "help", "Something else.")
    with pytest.raises(SystemExit, match="out of date"):
        reference.main()


def test_version_and_module() -> None:
    ran = spawn("--version")
    assert (ran.code, ran.stdout) == (0, f"exporter {__version__}\n")


def test_no_arguments_shows_the_help() -> None:
    ran = invoke()
    assert ran.code == 2
    assert "Usage: exporter" in ran.stderr


def test_shell_completion_lists_the_verbs() -> None:
    ran = spawn(_EXPORTER_COMPLETE="bash_complete", COMP_WORDS="exporter ", COMP_CWORD="1")
    assert {line.partition(",")[2] for line in ran.stdout.splitlines()} >= set(VERBS)
