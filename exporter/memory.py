"""Memory that is free and that the process still holds."""

from __future__ import annotations

import ctypes
import gc
import sys


def hand_back(*, collect: bool = True) -> None:
    """Give freed pages back to the system (glibc only).

    Args:
        collect: What only refers to itself is freed first: half a second once torch is imported.
    """
    if collect:
        gc.collect()
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
