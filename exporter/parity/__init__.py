"""PROOF: does an artifact compute what PyTorch computes? See README.md for the rules.

Importing this package loads neither torch nor a backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporter.parity.schema import Report
    from exporter.parity.verdict import rejudge
    from exporter.parity.verification import verify

__all__ = ["Report", "rejudge", "verify"]

_HOMES = {"Report": "schema", "rejudge": "verdict", "verify": "verification"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"exporter.parity.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
