"""The checkpoint that travels inside the package: a small Stable Diffusion that really paints.

It needs no network and no licence click, so the demo, the tests and a first `convert` all have a
true text-to-image pipeline to work on. Importing this module loads neither torch nor a backend.
"""

from __future__ import annotations

from pathlib import Path

NAMES: tuple[str, ...] = ("shapes",)
"""Names of the embedded checkpoints, as in `builtin:shapes`."""


def path(name: str = "shapes") -> Path:
    """Folder of an embedded checkpoint, in diffusers layout (`model_index.json` at its root)."""
    if name not in NAMES:
        raise ValueError(f"no embedded checkpoint named {name!r}; there is: {', '.join(NAMES)}")
    return Path(__file__).resolve().parent / name
