"""How often, and how long, to ask a server again that is busy or drops connections."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
BUSY = {408, 425, 429, 500, 502, 503, 504}
"""HTTP statuses that may pass (RFC 9110 §15, RFC 6585 §4)."""


@dataclass(frozen=True)
class Patience:
    """Asked again up to `tries` times in all, after `first`, 2·`first`, 4·`first` … seconds, at most
    `longest`; a server's own `Retry-After` is heeded up to `longest_asked`."""

    tries: int = 5
    first: float = 1.0
    longest: float = 30.0
    longest_asked: float = 300.0

    def pause(self, attempt: int, asked: float | None) -> float:
        """Seconds to wait after the failed attempt number `attempt` (from 0)."""
        return (
            min(asked, self.longest_asked)
            if asked is not None
            else min(self.first * 2**attempt, self.longest)
        )


def patient(call: Callable[[], T], patience: Patience, stop: threading.Event | None = None) -> T:
    """The call's result; a passing failure is waited for, the last one is raised as it is.

    Args:
        stop: Set by another thread when nobody wants the result any more.
    """
    for attempt in range(patience.tries):
        try:
            return call()
        except Exception as error:
            passing, asked = _passing(error)
            if not passing or attempt + 1 == patience.tries or (stop is not None and stop.is_set()):
                raise
            pause = patience.pause(attempt, asked)
            if stop is not None:
                stop.wait(pause)
            else:
                time.sleep(pause)
    raise AssertionError("unreachable: tries is at least 1")


def _passing(error: BaseException) -> tuple[bool, float | None]:
    """Whether a failure may pass by itself, and the seconds the server asked to wait."""
    import requests
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return False, None
    if isinstance(error, LocalEntryNotFoundError):  # the library's wrapping of whatever went wrong
        return _passing(error.__cause__) if error.__cause__ is not None else (False, None)
    if isinstance(error, HfHubHTTPError | requests.HTTPError):
        response = error.response
        if response is None or response.status_code not in BUSY:
            return False, None
        return True, _seconds(response.headers.get("Retry-After"))
    if isinstance(error, requests.ConnectionError) and _refused(error):
        return False, None
    broken = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    if isinstance(error, broken):
        return True, None
    # huggingface_hub's own check of the length
    return isinstance(error, OSError) and "Consistency check failed" in str(error), None


def _refused(error: BaseException) -> bool:
    """Nobody listens there, or there is no such host: asking again does not help."""
    text = str(error)
    return (
        "Connection refused" in text or "NameResolutionError" in text or "Name or service not known" in text
    )


def _seconds(value: str | None) -> float | None:
    """`Retry-After` in seconds; the form with a date is left to the usual pause."""
    try:
        return max(float(value), 0.0) if value is not None else None
    except ValueError:
        return None
