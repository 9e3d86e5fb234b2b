"""Runs the command line: in this process for speed, or as a real process where that matters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from click.testing import CliRunner

from exporter.cli import cli

CLOSED_PORT = "http://127.0.0.1:9"
"""Nothing listens there: a test that reaches for the Hub fails at once instead of going out."""


@dataclass(frozen=True)
class Ran:
    """What came out of one invocation."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        """stdout as exactly one JSON document."""
        value = json.loads(self.stdout)
        assert isinstance(value, dict)
        return value

    def failed(self, code: int, *parts: str) -> None:
        """Assert an error: its exit code, one sentence with `parts` in it, no traceback, clean stdout."""
        assert self.code == code, self
        assert self.stdout == ""
        assert "Traceback" not in self.stderr and "bug in exporter" not in self.stderr, self.stderr
        errors = [line for line in self.stderr.splitlines() if line.startswith("Error: ")]
        assert len(errors) == 1, self.stderr
        for part in parts:
            assert part in self.stderr, (part, self.stderr)


def invoke(*arguments: object) -> Ran:
    """In this process."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    return Ran(result.exit_code, result.stdout, result.stderr)


def environment(**extra: str) -> dict[str, str]:
    """For a child: no Hub, few threads, no debugging left over from the developer's shell."""
    base = {name: value for name, value in os.environ.items() if name != "EXPORTER_DEBUG"}
    return base | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": CLOSED_PORT, "OMP_NUM_THREADS": "2"} | extra


def spawn(*arguments: object, **extra: str) -> Ran:
    """`python -m exporter …` as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "exporter", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=800,
        env=environment(**extra),
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)
