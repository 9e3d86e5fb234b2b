"""The sink: what goes where in each mode."""

from __future__ import annotations

import io
import json
import logging
import math
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

from exporter.cli._output import Output, plain
from exporter.cli._progress import BarProgress, LineProgress, SilentProgress
from exporter.cli._show import bytes_text, seconds_text, verdict_code
from tests.cli.runner import environment


@dataclass
class Pair:
    left: Path
    right: float


class Model(BaseModel):
    limit: float
    pairs: tuple[str, ...]


def test_plain_values_survive_json() -> None:
    value = {
        "pair": Pair(Path("a/b"), math.nan),
        "model": Model(limit=math.inf, pairs=("x",)),
        "scalar": np.float32(0.5),
        "names": {"b", "a"},
        3: True,
    }
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == {
        "pair": {"left": "a/b", "right": "nan"},
        "model": {"limit": "inf", "pairs": ["x"]},
        "scalar": 0.5,
        "names": ["a", "b"],
        "3": True,
    }


NOISY = """
    import logging, os, sys, warnings
    from exporter.cli._output import Output
    output = Output(json={json}, quiet={quiet})
    output.verbose = {verbose}
    with output.guard():
        print("python noise")
        os.write(1, b"native noise\\n")
        warnings.warn("warning noise")
        logging.getLogger("library").warning("log noise")
        output.result({{"a": 1}}, human=lambda console: console.print("people"), quiet="bare")
    print("after")
"""


def noisy(*, json: bool = False, quiet: bool = False, verbose: bool = False) -> tuple[str, str]:
    code = textwrap.dedent(NOISY.format(json=json, quiet=quiet, verbose=verbose))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("mode", "printed"), [("human", "people\n"), ("json", '{\n  "a": 1\n}\n'), ("quiet", "bare\n")]
)
def test_libraries_cannot_write_to_stdout(mode: str, printed: str) -> None:
    stdout, stderr = noisy(json=mode == "json", quiet=mode == "quiet")
    assert stdout == printed + "after\n"
    assert stderr == "native noise\n"


def test_verbose_lets_them_speak_on_stderr() -> None:
    stdout, stderr = noisy(json=True, verbose=True)
    assert stdout == '{\n  "a": 1\n}\nafter\n'
    for noise in ("python noise", "native noise", "warning noise", "log noise"):
        assert noise in stderr


def test_a_closed_stdout_is_no_bug(tiny: Path) -> None:
    command = f"exec {sys.executable} -m exporter inspect {tiny} >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_terminal_that_knows_only_ascii(tiny: Path) -> None:
    command = [sys.executable, "-m", "exporter", "inspect", str(tiny)]
    done = subprocess.run(
        command, capture_output=True, env=environment(PYTHONIOENCODING="ascii"), check=False
    )
    assert done.returncode == 0, done.stderr
    assert b"unet" in done.stdout and done.stdout.isascii()


def test_guard_puts_logging_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.root.manager.disable
    with Output().guard():
        assert not logging.getLogger("library").isEnabledFor(logging.WARNING)
        assert logging.getLogger("library").isEnabledFor(logging.ERROR)
    assert logging.root.manager.disable == before


def test_notes_are_for_people_and_warnings_for_all(capsys: pytest.CaptureFixture[str]) -> None:
    for output in (Output(json=True), Output(quiet=True), Output()):
        output.note("a note")
        output.warn("careful")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("a note") == 1
    assert said.err.count("Warning: careful") == 3


def test_a_log_gets_one_line_a_task() -> None:
    stream = io.StringIO()
    with LineProgress(stream) as progress:
        progress.start("unet: export", 10)
        for step in range(10):
            progress.update(step, "busy")
        progress.done()
        progress.start("vae: export")
    lines = stream.getvalue().splitlines()
    assert [line.partition("] ")[2] for line in lines] == ["unet: export", "vae: export"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_with_labels_as_they_are() -> None:
    stream = Terminal()
    with BarProgress(stream) as progress:
        progress.start("[bold]unet[/bold]", 4)
        progress.update(2, "half")
        progress.start("vae")  # ends the one before
        progress.done()
    shown = stream.getvalue()
    assert "[bold]unet[/bold]" in shown  # not taken for markup
    assert "vae" in shown and "100%" in shown


def test_progress_by_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(Output().progress().shown, BarProgress)
    assert isinstance(Output(json=True).progress().shown, BarProgress)
    assert isinstance(Output(quiet=True).progress().shown, SilentProgress)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(Output().progress().shown, LineProgress)
    assert isinstance(Output(json=True).progress().shown, SilentProgress)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_960, "1.0 MB"),
        (3_400_000_000, "3.4 GB"),
        (None, "?"),
    ],
)
def test_bytes(count: int | None, text: str) -> None:
    assert bytes_text(count) == text


def test_seconds() -> None:
    assert [seconds_text(s) for s in (0.456, 12.34, 185)] == ["0.46 s", "12.3 s", "3 min 5 s"]


def test_only_pass_and_not_asked_are_zero() -> None:
    assert {v: verdict_code(v) for v in ("PASS", "FAIL", "INCONCLUSIVE", None, "pass", "")} == {
        "PASS": 0,
        "FAIL": 1,
        "INCONCLUSIVE": 5,
        None: 0,
        "pass": 5,
        "": 5,
    }
