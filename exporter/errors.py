"""The few exception types.

Every error a user can cause is one of these. Each carries the exit code of
the command line (the table is in the README) and, where there is one, the
next thing to do. Anything else that escapes is a bug.
"""

from __future__ import annotations


class ExporterError(Exception):
    """Base of every error that is reported without a traceback.

    Args:
        message: One sentence: what happened and why.
        hint: What to do next, usually a command. Printed on its own line.
    """

    exit_code = 3

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ExporterError):
    """The request itself is wrong: unknown target, option or destination."""

    exit_code = 2


class DestinationError(UsageError):
    """The destination exists, cannot be written, or is being written by another process."""


class InputError(ExporterError):
    """A checkpoint, recipe or artifact is broken or not supported."""

    exit_code = 3


class CheckpointError(InputError):
    """The source checkpoint cannot be used."""


class ArtifactError(InputError):
    """The artifact folder cannot be used."""


class UnsupportedError(InputError):
    """A part of the model has no route to the target; names the module and the operator."""


class BackendMissing(ExporterError):
    """A package or a piece of hardware is not there; the hint names the extra to install."""

    exit_code = 4


class ResourceError(ExporterError):
    """Not enough disk or memory. Raised before the work starts."""

    exit_code = 6


class NetworkError(ExporterError):
    """The network or the Hub did not do what was asked."""

    exit_code = 7


class VerificationFailed(ExporterError):
    """An artifact was judged FAIL."""

    exit_code = 1


class VerificationInconclusive(ExporterError):
    """An artifact could not be judged here."""

    exit_code = 5
