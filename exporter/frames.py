"""Clips in numbers: which counts of frames a video model can make, and what is said of the others.

The first latent frame stands for one frame, each further one for `temporal` of them: 8k + 1 frames at a scale
of 8. diffusers rounds other numbers without a word, to fewer frames than were asked for; here they are
refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from exporter.errors import UsageError

if TYPE_CHECKING:
    from exporter.architectures.base import Component


VIDEO_PIPELINES = ("LTXPipeline", "LTXImageToVideoPipeline")
"""Classes of diffusers that make clips."""
FROM_PICTURE = ("LTXImageToVideoPipeline",)
"""Those of them whose clip begins with a picture that is given."""


def check_frames(frames: int, temporal: int, what: str) -> None:
    """
    Args:
        temporal: Frames per latent frame after the first.
        what: The flag that was given, in the message.

    Raises:
        UsageError: No latents stand for that many frames.
    """
    if frames < 1 or (frames - 1) % temporal:
        below = max(frames - 1, 0) // temporal * temporal + 1
        raise UsageError(
            f"{what}: this model makes clips of {temporal}k + 1 frames, not of {frames}.",
            hint=f"Try {below} or {below + temporal}.",
        )


def is_video(components: Sequence[Component]) -> bool:
    return any(component.clip > 1 for component in components)


def check_baked(size: Sequence[int], components: Sequence[Component]) -> None:
    """Whether a `--static` size says what there is to say of frames.

    Args:
        size: Pictures, height, width, and of a video model perhaps frames.
        components: All of the checkpoint.

    Raises:
        UsageError: Frames of a picture model, or a number of them that it cannot make.
    """
    text = f"--static {'x'.join(map(str, size))}"
    if len(size) < 4:
        return
    if not is_video(components):
        raise UsageError(
            f"{text}: a model of pictures has no frames.", hint=f"Try {'x'.join(map(str, size[:3]))}."
        )
    check_frames(size[3], components[0].native.temporal, text)


def baked_note(sizes: Sequence[Sequence[int]], components: Sequence[Component]) -> list[str]:
    """What happens to the frames of sizes that do not say how many."""
    clip = max((component.clip for component in components), default=1)
    silent = [size for size in sizes if len(size) < 4]
    if clip == 1 or not silent:
        return []
    text = "x".join(map(str, silent[0]))
    return [
        f"--static {text} names no frames: clips of {clip} are baked, what the pipeline makes by itself; "
        f"--static {text}x{components[0].native.frames} would bake {components[0].native.frames}"
    ]
