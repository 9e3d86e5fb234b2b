"""Which of an artifact's baked sizes is opened."""

from __future__ import annotations

from exporter.artifact import Artifact
from exporter.errors import UsageError


def at_size(artifact: Artifact, height: int | None, width: int | None) -> Artifact:
    """Of an artifact with several sizes the one to open; any other as it is.

    Raises:
        UsageError: There are several, and none has that height and width.
    """
    sizes = artifact.manifest.sizes()
    if not sizes:
        return artifact
    fitting = [s for s in sizes if height in (None, s[1]) and width in (None, s[2])]
    if not fitting:
        have = ", ".join(dict.fromkeys(f"{size[1]}×{size[2]}" for size in sizes))
        wanted = f"{height or 'any height'}×{width or 'any width'}"
        raise UsageError(
            f"This artifact was baked for {have} pixels (height×width), not {wanted}.",
            hint="Ask for one of these, or convert without --static.",
        )
    single = [size for size in fitting if size[0] == 1]  # pictures are painted one by one
    return Artifact(artifact.root, artifact.manifest.at((single or fitting)[0]))
