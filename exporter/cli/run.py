"""`exporter run`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from exporter.cli._group import Command
from exporter.cli._output import Output
from exporter.cli._picture_flags import picture_flags
from exporter.cli._show import seconds_text
from exporter.cli._source_flags import intake_of, source_flags
from exporter.cli._trust_flag import trust_flag
from exporter.cli._types import Finite
from exporter.errors import DestinationError


@click.command(
    "run",
    cls=Command,
    examples=(
        (
            "Paint with an artifact",
            'exporter run shapes-onnx "a large red star at the left on a blue background" '
            "-o star.png --seed 7 --steps 25",
        ),
        (
            "The same picture with the PyTorch reference",
            'exporter run builtin:shapes "a large red star at the left on a blue background" '
            "-o reference.png --seed 7 --steps 25",
        ),
        (
            "Start from a picture",
            'exporter run shapes-onnx "a small green circle" -o again.png --image star.png --strength 0.6',
        ),
        (
            "Repaint the part of it that is white in a mask",
            'exporter run shapes-onnx "a small green circle" -o part.png --image star.png --mask mask.png',
        ),
        (
            "Follow the edges of a picture, with an artifact that has a ControlNet",
            'exporter run scribble-onnx "a lighthouse" -o house.png --control edges.png --control-scale 0.8',
        ),
        (
            "Take after a picture, with an artifact that has an IP-Adapter",
            'exporter run look-onnx "a lighthouse" -o house.png --ip-adapter-image storm.jpg '
            "--ip-adapter-scale 0.6",
        ),
        (
            "Try a LoRA on a checkpoint before it is converted",
            'exporter run model.safetensors "a lighthouse" -o try.png --lora style.safetensors:0.8',
        ),
        (
            "A clip, of a video model",
            'exporter run ltx-onnx "waves at a harbour" -o clip.gif --frames 25 --height 256 --width 384',
        ),
        (
            "A clip that begins with a picture, of a video model for that",
            'exporter run ltx-i2v-onnx "the waves come in" -o clip.mp4 --image harbour.png --frames 25',
        ),
        (
            "Let the runtime choose its arithmetic, as most clients do",
            'exporter run shapes-ov "a small green circle" -o circle.png --precision-hint default',
        ),
        (
            "Eight pictures, star-1.png to star-8.png; with StableHLO one on each of eight devices at a time",
            'exporter run shapes-jax "a large red star at the left on a blue background" -o star.png '
            "--pictures 8",
        ),
    ),
)
@click.argument("source", metavar="ARTIFACT|SOURCE")
@click.argument("prompt")
@click.option(
    "-o", "--output", "picture", type=click.Path(path_type=Path), required=True, metavar="FILE",
    help="The picture to write; the suffix gives the format (.png, .jpg, .webp). Several are numbered: "
    "star-1.png, star-2.png. Of a video model .mp4, .gif, or none: a folder of PNGs.",
)  # fmt: skip
@click.option("--also", multiple=True, metavar="PROMPT", help="A further prompt; repeatable.")
@click.option(
    "--pictures", type=click.IntRange(min=1), default=1, show_default=True,
    help="Of each prompt, each from a seed of its own: --seed, the next one, and so on.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the first noise.")
@click.option("--steps", type=click.IntRange(min=1), default=25, show_default=True, help="Scheduler steps.")
@click.option(
    "--guidance", type=Finite(), default=7.5, show_default=True, help="Guidance scale; 1 switches it off."
)
@click.option("--height", type=click.IntRange(min=1), help="Pixels.  [default: the native height]")
@click.option("--width", type=click.IntRange(min=1), help="Pixels.  [default: the native width]")
@click.option(
    "--frames", type=click.IntRange(min=1), help="Of a clip, 8k + 1 of them.  [default: the pipeline's]"
)
@click.option("--fps", type=Finite(above=0), help="Frames a second of a clip.  [default: the pipeline's]")
@click.option("--negative-prompt", metavar="TEXT", help="What the picture should not show.")
@picture_flags
@click.option(
    "--vae-tiling", is_flag=True, help="Decode in overlapping tiles: large pictures in little memory."
)
@click.option(
    "--no-safety-checker", is_flag=True,
    help="Show every picture: do not blacken what the model's safety checker finds.",
)  # fmt: skip
@click.option("--device", metavar="NAME", help="Device, as the runtime names it: CPU, GPU, cuda.")
@click.option(
    "--precision-hint", type=click.Choice(["f32", "bf16", "f16", "default"]),
    help="Arithmetic for runtimes that choose it.  [default: what the artifact was made for]",
)  # fmt: skip
@source_flags
@trust_flag
@click.pass_obj
def command(
    output: Output,
    /,
    source: str,
    prompt: str,
    picture: Path,
    also: tuple[str, ...],
    pictures: int,
    seed: int,
    steps: int,
    guidance: float,
    height: int | None,
    width: int | None,
    frames: int | None,
    fps: float | None,
    negative_prompt: str | None,
    image: Path | None,
    strength: float | None,
    mask: Path | None,
    vae_tiling: bool,
    no_safety_checker: bool,
    control: tuple[Path, ...],
    control_scale: tuple[float, ...],
    ip_adapter_image: Path | None,
    ip_adapter_scale: float | None,
    device: str | None,
    precision_hint: str | None,
    trust: bool,
    **given: Any,
) -> None:
    """Paint PROMPT with an artifact, or with a checkpoint in PyTorch.

    A checkpoint may have LoRAs, another autoencoder and new tokens laid over it, as in `exporter convert`.
    The pipeline around the components is diffusers' own, so the same seed gives the same picture
    in every format as far as the format's arithmetic allows. Several pictures are painted one after another;
    StableHLO shares them among all devices of the kind, which have to divide their number.
    """
    from exporter import clips
    from exporter.clip_files import write_clip
    from exporter.inspection import blame_changes
    from exporter.inspection import trust as state_of

    asked = {
        "--frames": frames, "--fps": fps, "--image": image, "--mask": mask, "--strength": strength,
        "--also": also or None, "--pictures": pictures if pictures > 1 else None,
        "--control": control or None, "--ip-adapter-image": ip_adapter_image,
    }  # fmt: skip
    video = clips.makes_clips(source)
    if video is not None:
        check_output(picture, video, asked)
    if video and not given["task"]:  # which makes it another class
        clips.check_picture(clips.class_of(source) or "", given=image is not None)
    intake = {name: value for name, value in intake_of(given).items() if value}
    state = state_of(source)
    if state is not None:
        (output.note if state.verdict == "PASS" else output.warn)(state.sentence)
    from exporter import pipeline, several
    from exporter.safety_checker import withheld_from

    prompts = several.repeated([prompt, *also], pictures)
    paths = several.paths(picture, len(prompts))
    start, hole = (pipeline.open_picture(path) if path is not None else None for path in (image, mask))
    model = pipeline.open_picture(ip_adapter_image) if ip_adapter_image is not None else None
    guides = [pipeline.open_picture(path) for path in control]
    started = time.monotonic()
    with blame_changes(state), output.progress() as progress:
        progress.start(f"loading {source}")
        loaded = pipeline.load(
            source, device=device, precision_hint=precision_hint, trust=trust, height=height, width=width,
            spread=len(prompts) > 1, safety_checker=not no_safety_checker, **intake,
        )  # fmt: skip
        progress.done()
        if video is None:
            check_output(picture, clips.is_video(loaded), asked)
        pipeline.spare_memory(loaded, tiling=vae_tiling)
        for note in getattr(loaded, "exporter_notes", ()):
            output.note(note)
        common: dict[str, Any] = {
            "seed": seed, "steps": steps, "guidance": guidance, "height": height, "width": width,
            "negative_prompt": negative_prompt, "progress": progress,
        }  # fmt: skip
        clip = None
        if clips.is_video(loaded):
            clip = clips.film(loaded, prompt, frames=frames, fps=fps, image=start, **common)
            painted = clip.frames[:1]
        else:
            painted = several.paint(
                loaded, prompts, image=start, mask=hole, strength=strength, control=guides,
                control_scale=control_scale, ip_adapter_image=model, ip_adapter_scale=ip_adapter_scale,
                **common,
            )  # fmt: skip
    withheld = [paths[place] for place in withheld_from(loaded)]
    if withheld:
        output.warn(
            f"The model's safety checker blackened {', '.join(map(str, withheld))}. Try another prompt or "
            "--seed; --no-safety-checker shows every picture."
        )
    if clip is not None:
        write_clip(clip, picture)
    else:
        for path, each in zip(paths, painted, strict=True):
            each.save(path)
    seconds = time.monotonic() - started
    compiling = pipeline.compile_seconds(loaded)
    length = "" if clip is None else f", {len(clip.frames)} frames at {clip.fps:g} a second"
    told = f", of which {seconds_text(compiling)} compiling" if compiling else ""
    width, height = painted[0].size
    devices = several.devices(loaded)
    many = f"{len(paths)} pictures" + (f" on {devices} devices" if devices > 1 else "") + ", "
    many = many if len(paths) > 1 else ""
    names = ", ".join(map(str, paths))
    output.result(
        {
            "picture": paths[0],
            "pictures": [
                {"picture": path, "prompt": text, "seed": seed + number}
                for number, (path, text) in enumerate(zip(paths, prompts, strict=True))
            ],
            "devices": devices,
            "width": width,
            "height": height,
            "frames": 1 if clip is None else len(clip.frames),
            "fps": None if clip is None else clip.fps,
            "source": source,
            "prompt": prompt,
            "seed": seed,
            "steps": steps,
            "guidance": guidance,
            "image": image,
            "mask": mask,
            "strength": strength,
            "vae_tiling": vae_tiling,
            "withheld": withheld,
            "control": list(control),
            "control_scale": list(control_scale),
            "ip_adapter_image": ip_adapter_image,
            "ip_adapter_scale": ip_adapter_scale,
            "verified": state.verdict if state is not None else None,
            "seconds": round(seconds, 3),
            "compile_seconds": round(compiling, 3),
        },
        human=lambda console: console.print(
            f"{names}  {width}×{height}{length}, {many}{seconds_text(seconds)}{told}",
            soft_wrap=True,
        ),
        quiet="\n".join(map(str, paths)),
    )


def check_output(path: Path, video: bool, asked: Mapping[str, Any]) -> None:
    """Say before the work what of the request the model cannot do, and that the file could not be written.

    Args:
        asked: Flags that only some models have, with what was given for them.

    Raises:
        UsageError: A flag that this kind of model has not.
        DestinationError: As `check_picture_path` and `check_clip_path`.
        BackendMissing: MP4 without its encoder.
    """
    from exporter.clip_files import check_clip_path
    from exporter.clips import check_request

    check_request(video, asked)
    (check_clip_path if video else check_picture_path)(path)


def check_picture_path(path: Path) -> None:
    """Say before the work that the picture could not be written after it.

    Raises:
        DestinationError: An unknown suffix, a folder that is missing or cannot be written.
    """
    from PIL import Image

    known = Image.registered_extensions()
    if known.get(path.suffix.lower()) not in Image.SAVE:
        raise DestinationError(
            f"{path.name!r} has no suffix of a picture format that can be written.",
            hint="Try -o picture.png.",
        )
    folder = path.expanduser().absolute().parent
    if path.is_dir() or not folder.is_dir():
        what = "is a folder" if path.is_dir() else f"cannot be written: {folder} is no folder"
        raise DestinationError(f"{path} {what}.")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise DestinationError(f"{path} cannot be written: permission denied.")
