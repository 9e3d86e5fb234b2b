"""Clips as files: GIF, MP4, or a folder of PNGs. What can be said of a path is said before the work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.errors import BackendMissing, DestinationError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".mp4", ".gif")
CENTISECONDS = 100
"""GIF tells how long a frame is shown in these; fewer than two of them are slowed down by browsers."""


@dataclass(frozen=True)
class Clip:
    """Pictures of one size, and how many are shown a second."""

    frames: Sequence[Image]
    fps: float

    @property
    def width(self) -> int:
        return self.frames[0].width

    @property
    def height(self) -> int:
        return self.frames[0].height


def check_clip_path(path: Path) -> None:
    """Say before the work that the clip could not be written after it.

    Raises:
        DestinationError: An unknown suffix, a folder that holds something, or a place that cannot be written.
        BackendMissing: MP4 without its encoder.
    """
    suffix = path.suffix.lower()
    if suffix and suffix not in SUFFIXES:
        raise DestinationError(
            f"{path.name!r} has no suffix of a clip: .mp4, .gif, or none for a folder of PNGs.",
            hint="Try -o clip.gif.",
        )
    folder = path.expanduser().absolute().parent
    if not folder.is_dir():
        raise DestinationError(f"{path} cannot be written: {folder} is no folder.")
    if suffix and path.is_dir():
        raise DestinationError(f"{path} is a folder.")
    if not suffix and path.exists() and (not path.is_dir() or any(path.iterdir())):
        what = "holds something" if path.is_dir() else "is a file"
        raise DestinationError(
            f"{path} {what}; the frames need a folder of their own.", hint="Name a new one."
        )
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise DestinationError(f"{path} cannot be written: permission denied.")
    if suffix == ".mp4":
        _encoder()


def write_clip(clip: Clip, path: Path) -> None:
    """Write a clip in the format of the suffix; without one, `frame-0001.png` and so on in a folder.

    Raises:
        BackendMissing: MP4 without its encoder.
    """
    suffix = path.suffix.lower()
    if not suffix:
        path.mkdir(exist_ok=True)
        for number, frame in enumerate(clip.frames):
            frame.save(path / f"frame-{number + 1:04d}.png")
        return
    if suffix == ".mp4":
        _encoder()
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{suffix}")
    try:
        (_write_gif if suffix == ".gif" else _write_mp4)(clip, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_gif(clip: Clip, path: Path) -> None:
    """Loops for ever. Frames that are equal are stored once and shown longer."""
    first, *others = (frame.convert("RGB") for frame in clip.frames)
    duration = max(1, round(CENTISECONDS / clip.fps)) * 1000 // CENTISECONDS
    first.save(path, save_all=True, append_images=others, duration=duration, loop=0)


def _write_mp4(clip: Clip, path: Path) -> None:
    """H.264 in 4:2:0, which every player knows; sides are even, for they are multiples of 32."""
    import imageio_ffmpeg

    writer = imageio_ffmpeg.write_frames(
        str(path), (clip.width, clip.height), fps=clip.fps, codec="libx264", quality=8, macro_block_size=2,
        ffmpeg_log_level="error",
    )  # fmt: skip
    writer.send(None)
    try:
        for frame in clip.frames:
            writer.send(frame.convert("RGB").tobytes())
    finally:
        writer.close()


def _encoder() -> None:
    hint = 'pip install "exporter[video]", or write a .gif.'
    if find_spec("imageio_ffmpeg") is None:
        raise BackendMissing("MP4 is written with imageio-ffmpeg, which is not installed here.", hint=hint)
    import imageio_ffmpeg

    try:
        imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise BackendMissing("imageio-ffmpeg finds no ffmpeg program on this system.", hint=hint) from error
