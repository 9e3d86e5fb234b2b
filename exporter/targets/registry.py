"""Finds targets by entry point. Names are listed without importing any of them."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from exporter.errors import BackendMissing, UsageError
from exporter.targets.base import Target

GROUP = "exporter.targets"


@cache
def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def target_names() -> list[str]:
    """Names of all registered targets, whether or not their backend is installed."""
    return sorted(_entries())


def get_target(name: str, *, require_backend: bool = True) -> Target:
    """A target by name.

    Args:
        name: As typed after `--to`.
        require_backend: Raise when the packages it needs are not installed.

    Raises:
        UsageError: No such target.
        BackendMissing: Its backend is not installed; the hint names the extra.
    """
    entry = _entries().get(name)
    if entry is None:
        raise UsageError(
            f"There is no target {name!r}; there are: {', '.join(target_names())}.",
            hint="Third-party targets register in the entry-point group `exporter.targets`.",
        )
    try:
        target: Target = entry.load()()
    except ImportError as error:
        raise BackendMissing(
            f"The target {name} cannot be loaded: {error}.", hint=f'pip install "exporter[{name}]"'
        ) from error
    missing = target.missing()
    if missing and require_backend:
        raise BackendMissing(
            f"The target {name} needs {', '.join(missing)}, which is not installed here.",
            hint=f'pip install "{target.package}"',
        )
    return target
