"""The one place that prints: results on stdout, everything else on stderr.

Three modes. Human: tables and a progress bar. `--json`: exactly one JSON document on stdout.
`--quiet`: the bare result. Whatever a library prints to stdout while a verb runs is kept off it.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

    from exporter.cli._errors import Failure
    from exporter.cli._interrupt import Interruptible

PIPE_WIDTH = 200
"""Columns of a table that is not printed to a terminal: wide, so that nothing is cut."""

SILENT_LIBRARIES = {
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}
"""Environment read by the libraries when they are imported, which happens after this is set."""


class Output:
    """The sink of one invocation. The flags are set while Click parses."""

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self.verbose = False
        self._stdout: TextIO | None = None
        self._stderr: TextIO | None = None

    @classmethod
    def for_arguments(cls, arguments: Sequence[str]) -> Output:
        """The mode as far as it can be told before parsing, for errors in the parsing itself."""
        words = list(arguments)
        if "--" in words:
            words = words[: words.index("--")]
        return cls(json="--json" in words, quiet="-q" in words or "--quiet" in words)

    @property
    def stdout(self) -> TextIO:
        """Where results go: the stdout of the process, even while `guard()` has replaced it."""
        return self._stdout or sys.stdout or io.StringIO()  # None where the caller closed it

    @property
    def stderr(self) -> TextIO:
        return self._stderr or sys.stderr or io.StringIO()

    def result(self, data: Any, *, human: Callable[[Console], None], quiet: str | None = None) -> None:
        """Print the outcome of the verb; called once.

        Args:
            data: What `--json` prints: a pydantic model, data class, or plain values.
            human: Prints the same for people on the console it is given.
            quiet: The bare result, or None for nothing.
        """
        if self.json:
            self.stdout.write(json.dumps(plain(data), indent=2, allow_nan=False) + "\n")
        elif self.quiet:
            if quiet is not None:
                self.stdout.write(quiet + "\n")
        else:
            human(self.console())
        self.stdout.flush()

    def note(self, text: str) -> None:
        """A remark on stderr; not under `--json` or `--quiet`."""
        if not (self.json or self.quiet):
            self.stderr.write(text + "\n")
            self.stderr.flush()

    def warn(self, text: str) -> None:
        """Something the user should know even under `--quiet`. On stderr."""
        self.stderr.write(f"Warning: {text}\n")
        self.stderr.flush()

    def failure(self, failure: Failure) -> None:
        """Report an error: a JSON document on stdout under `--json`, else a sentence and a hint on stderr."""
        if failure.silent:
            # Python would complain on exit when it flushes into the closed pipe.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return
        if self.json:
            self.stdout.write(json.dumps(plain(failure.document()), indent=2) + "\n")
            self.stdout.flush()
            return
        if failure.trace:
            self.stderr.write(failure.trace)
        label = "" if failure.type in {"NoArgsIsHelpError", "KeyboardInterrupt", "Abort"} else "Error: "
        self.stderr.write(f"{label}{failure.message}\n")
        if failure.hint:
            self.stderr.write(f"  {failure.hint}\n")
        self.stderr.flush()

    def console(self) -> Console:
        """A console on stdout: the terminal's width, or a wide one for pipes and files."""
        from rich.console import Console

        terminal = self.stdout.isatty()
        width = None if terminal else PIPE_WIDTH
        return Console(file=self.stdout, width=width, highlight=False, markup=False, emoji=False)

    def progress(self) -> Interruptible:
        """Progress on stderr: a bar on a terminal, one line a task elsewhere. A context manager."""
        from exporter.cli._interrupt import Interruptible
        from exporter.cli._progress import BarProgress, LineProgress, SilentProgress

        terminal = self.stderr.isatty()
        if self.quiet or (self.json and not terminal):
            return Interruptible(SilentProgress())
        return Interruptible(BarProgress(self.stderr) if terminal else LineProgress(self.stderr))

    def flush(self) -> None:
        self.stdout.flush()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Keep libraries' prints off stdout and their logs quiet while a verb runs.

        Python-level prints are dropped (shown on stderr with `--verbose`); what native code writes
        to file descriptor 1 goes to stderr.
        """
        from exporter.cli._errors import debugging

        loud = self.verbose or debugging()
        with ExitStack() as stack:
            self._stderr = sys.stderr
            self._stdout = stack.enter_context(_private_stdout())
            stack.callback(self._release)
            if loud:
                stack.enter_context(redirect_stdout(sys.stderr))
            else:
                null = stack.enter_context(Path(os.devnull).open("w"))
                stack.enter_context(redirect_stdout(null))
                stack.enter_context(_silence())
            yield

    def _release(self) -> None:
        self._stdout = self._stderr = None


@contextmanager
def _private_stdout() -> Iterator[TextIO | None]:
    """The process's stdout under a new descriptor, with descriptor 1 pointing at stderr meanwhile."""
    shown = sys.stdout
    try:
        real = shown.fileno() == 1
        os.fstat(2)
    except (OSError, ValueError, AttributeError):  # a test's buffer, or a stream is closed
        real = False
    if not real:
        yield shown
        return
    shown.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(saved, "w", encoding=shown.encoding, errors="replace", closefd=False) as stream:
            yield stream
    finally:
        os.dup2(saved, 1)
        os.close(saved)


@contextmanager
def _silence() -> Iterator[None]:
    for name, value in SILENT_LIBRARIES.items():
        os.environ.setdefault(name, value)
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def plain(value: Any) -> Any:
    """A value as JSON types. NaN and infinities, which JSON lacks, become strings."""
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=str)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a numpy or torch scalar
        return plain(value.item())
    return str(value)
