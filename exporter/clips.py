"""RUN, of video models: a clip from a prompt, by any pipeline of `exporter.pipeline`."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.artifact import MANIFEST
from exporter.clip_files import Clip
from exporter.errors import UsageError
from exporter.frames import FROM_PICTURE, VIDEO_PIPELINES, check_frames
from exporter.progress import NullProgress, Progress

if TYPE_CHECKING:
    from PIL.Image import Image


def is_video(pipeline: Any) -> bool:
    """Whether a pipeline makes clips."""
    return type(pipeline).__name__ in VIDEO_PIPELINES


def makes_clips(source: str) -> bool | None:
    """Whether a source is a video model, from its small files; None of one on the Hub."""
    found = class_of(source)
    return None if found is None else found in VIDEO_PIPELINES


def class_of(source: str) -> str | None:
    """A source's pipeline class, from its small files; empty where they say none, None of one on the Hub."""
    from exporter.checkpoints.hub import is_hub_id

    folder = Path(source).expanduser()
    if not folder.exists() and is_hub_id(source):
        return None
    for name in (MANIFEST, "model_index.json"):
        try:
            data = json.loads((folder / name).read_text(encoding="utf-8"))
            return str(data["source"]["pipeline_class"] if name == MANIFEST else data["_class_name"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return ""


def check_request(video: bool, asked: Mapping[str, Any]) -> None:
    """
    Args:
        asked: Flags that only some models have, with what was given for them.

    Raises:
        UsageError: One was given that this kind of model has not.
    """
    of_clips = ("--frames", "--fps")
    for flag, value in asked.items():
        if value is None or (flag in of_clips) == video or (video and flag == "--image"):
            continue
        if video:
            raise UsageError(f"{flag}: this model makes clips from text alone.", hint="Leave it out.")
        raise UsageError(
            f"{flag}: this model paints pictures; only video models make clips.", hint="Leave it out."
        )


def film(
    pipeline: Any,
    prompt: str,
    *,
    seed: int = 0,
    steps: int = 25,
    guidance: float = 3.0,
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    fps: float | None = None,
    negative_prompt: str | None = None,
    image: Image | None = None,
    progress: Progress | None = None,
) -> Clip:
    """One clip.

    Args:
        seed: Of the CPU generator that draws the first latents.
        steps: Scheduler steps.
        guidance: Classifier-free guidance scale; 1 or less switches it off.
        height / width: Pixels; what the artifact was baked for, else the pipeline's own, when None.
        frames: The same of frames.
        image: The picture that the clip begins with, of a model that takes one; scaled to that size.
        fps: Frames a second, which the model is told as well; the pipeline's own when None.

    Raises:
        UsageError: A size or number of frames that the model cannot make, or that was not baked; a picture
            that it does not take, or none where it begins with one.
    """
    import torch
    from PIL.Image import Resampling

    report = progress or NullProgress()
    known = inspect.signature(pipeline.__call__).parameters
    check_picture(type(pipeline).__name__, given=image is not None)
    baked = baked_size(pipeline)
    wanted = {
        name: given or have or int(known[name].default)
        for name, given, have in zip(
            ("num_frames", "height", "width"), (frames, height, width), baked or (None,) * 3, strict=True
        )
    }
    rate = fps if fps is not None else float(known["frame_rate"].default)
    check_size(pipeline, wanted["num_frames"], wanted["height"], wanted["width"])
    report.start(f"filming “{prompt}”", steps)

    def step(_: Any, index: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:
        report.update(index + 1, f"step {index + 1} of {steps}")
        return values

    begun = {}
    if image is not None:
        size = (wanted["width"], wanted["height"])
        begun["image"] = image.convert("RGB").resize(size, Resampling.LANCZOS)
    result = pipeline(
        prompt=prompt,
        negative_prompt=negative_prompt,
        num_inference_steps=steps,
        guidance_scale=guidance,
        frame_rate=rate,
        generator=torch.Generator("cpu").manual_seed(seed),
        callback_on_step_end=step,
        **wanted,
        **begun,
    )
    report.done()
    return Clip(tuple(result.frames[0]), rate)


def check_picture(pipeline_class: str, *, given: bool) -> None:
    """
    Raises:
        UsageError: A picture for a pipeline that takes none, or none for one that begins with it.
    """
    takes = pipeline_class in FROM_PICTURE
    if takes and not given:
        raise UsageError("This model begins its clips with a picture.", hint="Give it one with --image FILE.")
    if given and not takes:
        raise UsageError(
            "--image: this model makes clips from text alone.",
            hint="Leave it out, or convert the checkpoint with --task image-to-video (or run it with that).",
        )


def baked_size(pipeline: Any) -> tuple[int | None, int | None, int | None] | None:
    """(frames, height, width) that an artifact's decoder was baked for, None each where it is free; None of a
    pipeline that is no artifact's."""
    runner = getattr(pipeline.vae, "runner", None)
    if runner is None:
        return None
    dims: list[Any] = next(list(spec.dims) for spec in runner.inputs if spec.name == "latent_sample")
    space, time = pipeline.vae_spatial_compression_ratio, pipeline.vae_temporal_compression_ratio
    frames, height, width = dims[2:]
    return (
        (frames - 1) * time + 1 if isinstance(frames, int) else None,
        height * space if isinstance(height, int) else None,
        width * space if isinstance(width, int) else None,
    )


def check_size(pipeline: Any, frames: int, height: int, width: int) -> None:
    """
    Raises:
        UsageError: As `film`.
    """
    space = pipeline.vae_spatial_compression_ratio
    step = max(space, 32)  # which diffusers asks for, whatever the autoencoder
    if height % step or width % step or height <= 0 or width <= 0:
        raise UsageError(f"Height and width must be multiples of {step}, not {height}×{width}.")
    check_frames(frames, pipeline.vae_temporal_compression_ratio, f"--frames {frames}")
    baked = baked_size(pipeline) or (None,) * 3
    if any(
        have is not None and have != want for have, want in zip(baked, (frames, height, width), strict=True)
    ):
        has = "any number of" if baked[0] is None else str(baked[0])
        size = "×".join("any" if n is None else str(n) for n in baked[1:])
        raise UsageError(
            f"This artifact was baked for {has} frames of {size} pixels, not {frames} of {height}×{width}.",
            hint="Leave out --frames, --height and --width, or convert without --static.",
        )


def in_one_picture(clip: Clip) -> Any:
    """All frames, one below the other: what compares two pictures compares two clips."""
    from PIL import Image

    sheet = Image.new("RGB", (clip.width, clip.height * len(clip.frames)))
    for number, frame in enumerate(clip.frames):
        sheet.paste(frame, (0, number * clip.height))
    return sheet
