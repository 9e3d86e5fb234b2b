"""OUT: one package per format. `get_target()` finds them through entry points."""

from exporter.targets.base import (
    Estimate,
    ExportedComponent,
    Options,
    Peak,
    PrecisionHint,
    Runner,
    RunOptions,
    Target,
)
from exporter.targets.registry import get_target, target_names

__all__ = [
    "Estimate",
    "ExportedComponent",
    "Options",
    "Peak",
    "PrecisionHint",
    "RunOptions",
    "Runner",
    "Target",
    "get_target",
    "target_names",
]
