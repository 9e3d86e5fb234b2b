"""The formats that faults are planted into, by name."""

from __future__ import annotations

from tests.mutation.formats.base import FORMATS, Format, blobs, folder_of, part

__all__ = ["FORMATS", "Format", "available", "blobs", "folder_of", "format_of", "part"]


def _load() -> None:
    from tests.mutation.formats import (  # noqa: F401
        coreml,
        onnx,
        openvino,
        pt2,
        safetensors,
        stablehlo,
        torchscript,
    )


def format_of(name: str) -> Format:
    """By name; a target that has no module here gets what is possible without one.

    Raises:
        UsageError: There is no such target either.
    """
    from exporter.targets import get_target
    from tests.mutation.formats.common import plain

    _load()
    if name not in FORMATS:
        get_target(name, require_backend=False)
        return plain(name)
    return FORMATS[name]


def available() -> list[str]:
    """Every registered target whose backend is installed here, and the compressed forms of these."""
    from exporter.targets import get_target, target_names

    _load()
    here = [name for name in target_names() if not get_target(name, require_backend=False).missing()]
    known = [name for name in FORMATS if FORMATS[name].target in here]
    return [*known, *(name for name in here if name not in known)]
