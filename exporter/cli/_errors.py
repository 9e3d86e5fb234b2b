"""From an exception to one sentence, a hint and an exit code.

`RULES` is tried from top to bottom. Libraries' exceptions are recognised by the names in their
class hierarchy, so that no library is imported to report an error.
"""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import click

from exporter.errors import ExporterError

EXIT_CODES = {
    0: "done; the verification passed",
    1: "the verification said FAIL",
    2: "the request is wrong: option, target, destination",
    3: "the checkpoint, recipe or artifact is broken or not supported (or exporter has a bug)",
    4: "a package or a piece of hardware is missing; the message names the extra to install",
    5: "the verification said INCONCLUSIVE",
    6: "not enough disk or memory",
    7: "the network or the Hub failed",
    130: "interrupted",
}
BUG = 3
BROKEN_PIPE = 128 + 13
DEBUG_VARIABLE = "EXPORTER_DEBUG"

NETWORK_ERRORS = {
    "HfHubHTTPError", "LocalEntryNotFoundError", "OfflineModeIsEnabled", "RequestException",
    "HTTPError", "TransportError", "URLError", "ConnectionError", "TimeoutError", "gaierror",
}  # fmt: skip
MEMORY_ERRORS = {"MemoryError", "OutOfMemoryError"}
ALLOCATION_MESSAGES = ("can't allocate memory", "failed to allocate memory", "std::bad_alloc")
NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}


class ReaderGone(Exception):
    """The reader of our stdout has left. Click turns a BrokenPipeError into exit code 1, our FAIL."""


@dataclass(frozen=True)
class Failure:
    """An error as it is shown.

    Attributes:
        type: Name of the exception class.
        message: One sentence.
        hint: The next thing to do, or None.
        exit_code: One of `EXIT_CODES`.
        trace: The traceback, only under EXPORTER_DEBUG=1.
        silent: Nothing is printed (the reader of a pipe has gone).
    """

    type: str
    message: str
    hint: str | None
    exit_code: int
    trace: str | None = None
    silent: bool = False

    def document(self) -> dict[str, Any]:
        """What `--json` prints: `{"error": {type, message, hint, exit_code}}`."""
        shown = {name: value for name, value in asdict(self).items() if name not in {"silent", "trace"}}
        if self.trace is not None:
            shown["trace"] = self.trace
        return {"error": shown}


def debugging() -> bool:
    """Whether EXPORTER_DEBUG asks for tracebacks."""
    return os.environ.get(DEBUG_VARIABLE, "") not in {"", "0"}


def explain(error: BaseException) -> Failure:
    """The failure for any exception."""
    if isinstance(error, click.Abort) and isinstance(error.__cause__, EOFError):
        error = error.__cause__  # Click takes any EOFError for a user who left a prompt; we never prompt
    trace = "".join(traceback.format_exception(error)) if debugging() else None
    for applies, describe in RULES:
        if applies(error):
            message, hint, code = describe(error)
            return Failure(
                type(error).__name__, message, hint, code, trace, silent=isinstance(error, ReaderGone)
            )
    raise AssertionError("the last rule takes everything")


Described = tuple[str, str | None, int]


def _own(error: BaseException) -> Described:
    assert isinstance(error, ExporterError)
    return error.message, error.hint, error.exit_code


def _usage(error: BaseException) -> Described:
    assert isinstance(error, click.ClickException)
    message = error.format_message()
    context = getattr(error, "ctx", None)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return message, None, 2
    hint = f"Try `{context.command_path} --help`." if context is not None else None
    return message, hint, 2


def _interrupted(error: BaseException) -> Described:
    return "Interrupted.", "Nothing was left half-written; the same command starts over or resumes.", 130


def _memory(error: BaseException) -> Described:
    hint = "Close other programs, convert one `--component` at a time, or use a machine with more memory."
    return "The machine ran out of memory.", hint, 6


def _space(error: BaseException) -> Described:
    where = f" at {error.filename}" if isinstance(error, OSError) and error.filename else ""
    return f"The disk is full{where}.", "Free some space, or give another folder with `-o`.", 6


def _permission(error: BaseException) -> Described:
    assert isinstance(error, OSError)
    reason = (error.strerror or "permission denied").lower()
    return f"{error.filename or 'A file'} cannot be accessed: {reason}.", None, 2


def _file(error: BaseException) -> Described:
    assert isinstance(error, OSError)
    return f"{error.filename or 'A file'} cannot be used: {(error.strerror or str(error)).lower()}.", None, 3


def _module(error: BaseException) -> Described:
    assert isinstance(error, ModuleNotFoundError)
    hint = "`exporter doctor` lists what is missing and the command that installs it."
    return f"The package {error.name} is needed and not installed here.", hint, 4


def _network(error: BaseException) -> Described:
    first = (str(error).splitlines() or [""])[0]
    hint = "Check the network; `builtin:shapes` and local folders need none."
    return f"The network or the Hub failed: {first or type(error).__name__}.", hint, 7


def _bug(error: BaseException) -> Described:
    first = (str(error).strip().splitlines() or ["no message"])[0]
    hint = f"Run again with {DEBUG_VARIABLE}=1 for the traceback and report it."
    return f"This is a bug in exporter: {type(error).__name__}: {first}", hint, BUG


def _is(*types: type[BaseException]) -> Callable[[BaseException], bool]:
    return lambda error: isinstance(error, types)


def _named(names: set[str]) -> Callable[[BaseException], bool]:
    return lambda error: any(base.__name__ in names for base in type(error).__mro__)


def _errno(numbers: set[int]) -> Callable[[BaseException], bool]:
    return lambda error: isinstance(error, OSError) and error.errno in numbers


def _allocation(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(part in str(error) for part in ALLOCATION_MESSAGES)


RULES: tuple[tuple[Callable[[BaseException], bool], Callable[[BaseException], Described]], ...] = (
    (_is(ExporterError), _own),
    (_is(KeyboardInterrupt, click.Abort), _interrupted),
    (_is(click.ClickException), _usage),
    (_is(ReaderGone), lambda error: ("The reader of the output has gone.", None, BROKEN_PIPE)),
    (_named(MEMORY_ERRORS), _memory),
    (_allocation, _memory),
    (_errno({errno.ENOMEM}), _memory),
    (_errno(NO_SPACE), _space),
    (_is(ModuleNotFoundError), _module),
    (_named(NETWORK_ERRORS), _network),
    (_errno(NOT_WRITABLE), _permission),
    (_is(FileNotFoundError, IsADirectoryError, NotADirectoryError), _file),
    (_is(BaseException), _bug),
)
"""First match wins; the order goes from our own types to the general ones."""
