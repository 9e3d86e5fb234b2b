"""Every exception becomes one sentence and a code of the table."""

from __future__ import annotations

import errno

import click
import pytest

from exporter import errors
from exporter.cli._errors import EXIT_CODES, explain
from tests.cli.runner import invoke, spawn


def os_error(number: int) -> OSError:
    return OSError(number, "said the system", "/some/file")


class RemoteDisconnected(ConnectionError):
    pass


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("x"), 2),
        (errors.DestinationError("x"), 2),
        (errors.CheckpointError("x"), 3),
        (errors.ArtifactError("x"), 3),
        (errors.UnsupportedError("x"), 3),
        (errors.BackendMissing("x"), 4),
        (errors.ResourceError("x"), 6),
        (errors.NetworkError("x"), 7),
        (errors.VerificationFailed("x"), 1),
        (errors.VerificationInconclusive("x"), 5),
        (click.UsageError("x"), 2),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
        (MemoryError(), 6),
        (OutOfMemoryError("CUDA"), 6),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 6),
        (os_error(errno.ENOSPC), 6),
        (os_error(errno.EDQUOT), 6),
        (os_error(errno.ENOMEM), 6),
        (os_error(errno.EACCES), 2),
        (os_error(errno.EROFS), 2),
        (os_error(errno.ENOENT), 3),
        (ModuleNotFoundError("No module named 'onnx'", name="onnx"), 4),
        (RemoteDisconnected("gone"), 7),
        (ValueError("surprise"), 3),
    ],
)
def test_code(error: BaseException, code: int) -> None:
    failure = explain(error)
    assert failure.exit_code == code
    assert failure.exit_code in EXIT_CODES
    assert failure.message and "\n" not in failure.message
    assert failure.trace is None


def test_only_the_unexpected_is_called_a_bug() -> None:
    assert "bug in exporter" in explain(ZeroDivisionError("division by zero")).message
    assert "EXPORTER_DEBUG=1" in (explain(ZeroDivisionError()).hint or "")
    assert "bug" not in explain(os_error(errno.ENOSPC)).message


def test_the_end_of_a_file_is_no_interruption() -> None:
    abort = click.Abort()
    abort.__cause__ = EOFError("truncated")
    assert explain(abort).exit_code == 3 and "truncated" in explain(abort).message


def test_hints_are_kept() -> None:
    failure = explain(errors.BackendMissing("No ONNX here.", hint='pip install "exporter[onnx]"'))
    assert failure.hint == 'pip install "exporter[onnx]"'
    assert failure.document()["error"] == {
        "type": "BackendMissing",
        "message": "No ONNX here.",
        "hint": 'pip install "exporter[onnx]"',
        "exit_code": 4,
    }


def test_a_traceback_is_shown_only_when_asked_for() -> None:
    plain, debug = spawn("inspect", "nowhere"), spawn("inspect", "nowhere", EXPORTER_DEBUG="1")
    assert plain.code == debug.code == 3
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr and "CheckpointError" in debug.stderr


def test_an_error_under_json_is_the_only_thing_printed() -> None:
    for arguments in (["inspect", "nowhere", "--json"], ["--json", "inspect", "nowhere"]):
        ran = invoke(*arguments)
        assert ran.code == 3 and ran.stderr == ""
        assert ran.document["error"]["exit_code"] == 3
        assert ran.document["error"]["type"] == "CheckpointError"


@pytest.mark.parametrize("arguments", [["nosuch"], ["doctor", "--nosuch"], ["convert", "--to", "onnx"], []])
def test_usage_errors_under_json_too(arguments: list[str]) -> None:
    ran = invoke(*arguments, "--json")
    assert ran.code == 2 and ran.stderr == ""
    assert ran.document["error"]["exit_code"] == 2


def test_json_after_the_end_of_options_is_an_argument() -> None:
    ran = invoke("inspect", "--", "--json")
    ran.failed(3, "'--json'")
