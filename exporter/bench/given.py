"""Pictures that competitors are given: to start from, to repaint, to follow, to take after.

Those that the request names, which every competitor has to take, as `exporter run` would; and where a model
wants one that is not named, the drawing that verification gives it too.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter import clips
from exporter.architectures.controlnet import control_argument, controller
from exporter.architectures.ip_adapter import looks
from exporter.frames import FROM_PICTURE
from exporter.painting import is_baked, native_size, open_picture, repaints, starts_from

if TYPE_CHECKING:
    from PIL.Image import Image

    from exporter.bench.request import Settings

DRAWING = "the verifier's drawing"
FILES = ("image", "mask", "control", "ip_adapter_image")
"""Settings of a bench that name files."""
NUMBERS = ("strength", "control_scale", "ip_adapter_scale")


@dataclass(frozen=True)
class Given:
    """What one competitor is given.

    Attributes:
        arguments: Of `exporter.pipeline.paint`, or of `exporter.clips.film`.
        names: What it is → the file's name, or `DRAWING`; empty where a model paints from words alone.
    """

    arguments: dict[str, Any]
    names: dict[str, str]


def given_to(pipeline: Any, settings: Mapping[str, Any]) -> Given:
    """Open what the request names, and draw what the model wants beyond it.

    Args:
        pipeline: What `exporter.pipeline.load` gave.
        settings: Of `exporter.bench.Settings`, as JSON has them.

    Raises:
        UsageError: A flag that only other kinds of models have.
        InputError: A file that is no picture.
    """
    asked = {name: None if settings[name] in ([], ()) else settings[name] for name in (*FILES, *NUMBERS)}
    video = clips.is_video(pipeline)
    flags = {f"--{name.replace('_', '-')}": value for name, value in asked.items()}
    if video:
        clips.check_request(video, flags)
        clips.check_picture(type(pipeline).__name__, given=flags["--image"] is not None or _begins(pipeline))
    clips.check_request(video, {"--frames": settings["frames"]})
    paths = {name: _listed(asked[name]) for name in FILES}
    pictures = {name: [open_picture(Path(path)) for path in each] for name, each in paths.items()}
    names = {name: ", ".join(Path(path).name for path in each) for name, each in paths.items() if each}
    shown = next((pictures[name][0] for name in ("image", "control") if pictures[name]), None)
    size = _size(pipeline, settings, shown)
    drawn = {name: count for name, count in _wanted(pipeline, asked).items() if not pictures[name]}
    for name, count in drawn.items():
        pictures[name] = [_drawing(pipeline, name, number, size) for number in range(count)]
        names[name] = DRAWING
    arguments: dict[str, Any] = {name: asked[name] for name in NUMBERS if asked[name] is not None}
    arguments |= {name: each if name == "control" else each[0] for name, each in pictures.items() if each}
    if drawn and shown is None:  # what is drawn has this size, which is not to be rounded to another
        arguments |= {"height": size[0], "width": size[1]}
    return Given(arguments, {name: names[name] for name in FILES if name in names})


def as_files(settings: Settings) -> Settings:
    """Settings whose pictures are names of files, in full, all of which can be opened.

    Raises:
        InputError: One is no picture.
    """
    paths = {name: [os.path.abspath(p) for p in _listed(getattr(settings, name))] for name in FILES}
    for path in (path for each in paths.values() for path in each):
        open_picture(Path(path))
    found: dict[str, Any] = {
        name: tuple(each) if name == "control" else next(iter(each), None) for name, each in paths.items()
    }
    return replace(settings, **found, control_scale=tuple(settings.control_scale))


def told(names: Mapping[str, str]) -> str:
    """For people: `image: harbour.png, mask: the verifier's drawing`."""
    return ", ".join(f"{name.replace('_', '-')}: {what}" for name, what in names.items())


def _listed(value: Any) -> list[str]:
    return [os.fspath(each) for each in ([value] if isinstance(value, str | os.PathLike) else value or ())]


def _begins(pipeline: Any) -> bool:
    return type(pipeline).__name__ in FROM_PICTURE


def _wanted(pipeline: Any, asked: Mapping[str, Any]) -> dict[str, int]:
    """Pictures without which the model cannot paint, and how many of each."""
    if clips.is_video(pipeline):
        return {"image": 1} if _begins(pipeline) else {}
    wanted = {"ip_adapter_image": 1} if looks(pipeline) else {}
    if getattr(pipeline, "exporter_generic", None):
        from exporter.architectures.generic.ports import takes_picture

        return wanted | ({"image": 1} if takes_picture(pipeline) else {})
    own, known = starts_from(pipeline), inspect.signature(pipeline.__call__).parameters
    # A class for repainting starts from a picture given without a mask, if its model is not made for masks.
    if repaints(pipeline) or ("mask_image" in own and not asked["image"]):
        wanted |= {"image": 1, "mask": 1}
    elif "image" in own:
        wanted |= {"image": 1}
    if control_argument(known) is not None:
        wanted |= {"control": len(getattr(controller(pipeline), "nets", ()) or (None,))}
    return wanted


def _size(pipeline: Any, settings: Mapping[str, Any], shown: Image | None) -> tuple[int, int]:
    """(height, width) of what is drawn: what is painted, as far as nobody said otherwise."""
    if clips.is_video(pipeline):
        known = inspect.signature(pipeline.__call__).parameters
        baked = (clips.baked_size(pipeline) or (None,) * 3)[1:]
        high, wide = (
            have or known[side].default for have, side in zip(baked, ("height", "width"), strict=True)
        )
    elif getattr(pipeline, "exporter_generic", None):
        from exporter.architectures.generic.ports import native_size as native

        high, wide = getattr(pipeline, "exporter_baked", None) or native(pipeline)[:2]
    elif shown is not None and not is_baked(pipeline):
        high, wide = shown.height, shown.width
    else:
        high, wide = native_size(pipeline)
    return settings["height"] or int(high), settings["width"] or int(wide)


def _drawing(pipeline: Any, name: str, number: int, size: tuple[int, int]) -> Image:
    from exporter.parity import given
    from exporter.parity.generic_painting import to_pil
    from exporter.parity.painting import Plan

    plan = Plan((), 1, 0, *size)
    if name == "image":
        return to_pil(given.start(plan, 1))
    if name == "mask":
        return to_pil(given.mask(plan).expand(-1, 3, -1, -1))
    if name == "control":
        return to_pil(given.edges(plan, number))
    pixels = int(pipeline.image_encoder.config.image_size)
    return to_pil(given.waves(pixels, pixels)[None])
