"""RUN: prompts to pictures with a pipeline, and what may be asked of it: task, size, strength, drawings."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from exporter.architectures.controlnet import control_argument
from exporter.architectures.stable_diffusion_3 import PIPELINES, t5_tokens
from exporter.calls import as_written, at_the_size_asked_for, watched
from exporter.control import following
from exporter.errors import InputError, UsageError
from exporter.ip_adapter import looking
from exporter.progress import NullProgress, Progress
from exporter.safety_checker import note_withheld

if TYPE_CHECKING:
    from PIL.Image import Image


def denoiser(pipeline: Any) -> Any:
    """The pipeline's UNet or transformer."""
    found = getattr(pipeline, "unet", None)
    return found if found is not None else pipeline.transformer


def native_size(pipeline: Any) -> tuple[int, int]:
    """(height, width) in pixels: what a static artifact was baked for, else the training size."""
    factor = pipeline.vae_scale_factor
    baked = _baked(pipeline)
    if baked is not None and isinstance(baked[0], int) and isinstance(baked[1], int):
        return baked[0] * factor, baked[1] * factor
    size = denoiser(pipeline).config.get("sample_size")
    if size is None:  # of latents in packs, which do not tell height from width
        size, factor = pipeline.vae.config.sample_size, 1
    height, width = (size, size) if isinstance(size, int) else size
    return height * factor, width * factor


def _baked(pipeline: Any) -> Sequence[int | str] | None:
    """(height, width) of the latents as an artifact declares them, numbers where they are baked; None of a
    pipeline that is no artifact's."""
    for module, name in (
        (denoiser(pipeline), ("sample", "hidden_states")),
        (pipeline.vae, ("latent_sample",)),
    ):
        runner = getattr(module, "runner", None)
        dims = next((s.dims for s in runner.inputs if s.name in name), ()) if runner is not None else ()
        if len(dims) == 4:
            return list(dims[2:])
    return None


def baked_tokens(pipeline: Any) -> int | None:
    """`max_sequence_length` with which a pipeline of Stable Diffusion 3 makes the text that an artifact's
    components were baked for; None where any length does, and of other pipelines."""
    if not type(pipeline).__name__.startswith(PIPELINES):
        return None
    modules = {name: getattr(pipeline, name, None) for name in ("transformer", "text_encoder_3")}
    runners = {name: getattr(module, "runner", None) for name, module in modules.items()}
    inputs = {name: runner.inputs for name, runner in runners.items() if runner is not None}
    return t5_tokens(inputs, int(pipeline.tokenizer_max_length))


def _step(pipeline: Any) -> int:
    """Pixels of which each side of a picture is a multiple: the VAE's factor, and the denoiser's patches."""
    config = denoiser(pipeline).config
    packed = 2 if hasattr(pipeline, "_pack_latents") else 1
    return int(pipeline.vae_scale_factor * (config.get("patch_size") or 1) * packed)


def spare_memory(pipeline: Any, *, tiling: bool = False, slicing: bool = False) -> None:
    """Let the autoencoder work on tiles of a large picture, or on one picture of a batch, at a time.

    Tiles are blended where they overlap; the picture is close to the undivided one, not equal to it.

    Raises:
        UsageError: This autoencoder cannot.
    """
    for wanted, name in ((tiling, "enable_tiling"), (slicing, "enable_slicing")):
        if wanted and not hasattr(pipeline.vae, name):
            raise UsageError(f"A {type(pipeline.vae).__name__} has no {name.removeprefix('enable_')}.")
        if wanted:
            getattr(pipeline.vae, name)()


def _out_channels(pipeline: Any) -> int:
    config = denoiser(pipeline).config
    return int(config.get("out_channels") or config.in_channels)


def open_picture(path: Path) -> Image:
    """A picture file, turned as its EXIF says.

    Raises:
        InputError: It is none, or damaged.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            turned = ImageOps.exif_transpose(picture)
            turned.load()
            return turned
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a picture: {error}.") from error


def starts_from(pipeline: Any) -> set[str]:
    """Which of `image` and `mask_image` the pipeline's own class begins with."""
    known = set(inspect.signature(pipeline.__call__).parameters)
    if control_argument(known) == "image":  # what its ControlNet reads, not what it starts from
        known.remove("image")
    return known & {"image", "mask_image"}


def repaints(pipeline: Any) -> bool:
    """Whether the model was made for repainting, so that it needs a mask."""
    channels = int(denoiser(pipeline).config.in_channels)
    return channels == 9 or ("mask_image" in starts_from(pipeline) and channels > _out_channels(pipeline))


def for_task(pipeline: Any, *, image: bool, mask: bool) -> Any:
    """The pipeline of the same components that starts from noise, from a picture, or repaints part of one.

    Raises:
        UsageError: The model cannot do that.
    """
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting

    name, own = type(pipeline).__name__, starts_from(pipeline)
    if mask and not image:
        raise UsageError("A mask needs the picture that it masks.", hint="Add --image FILE.")
    if not mask and repaints(pipeline):
        raise UsageError(
            "This model repaints part of a picture.", hint="Give it one with --image FILE --mask FILE."
        )
    if not image:
        if "image" in own:
            raise UsageError(f"A {name} starts from a picture.", hint="Give it one with --image FILE.")
        return pipeline
    if ("mask_image" in own) == mask and "image" in own:
        return pipeline
    auto = AutoPipelineForInpainting if mask else AutoPipelineForImage2Image
    try:
        made = auto.from_pipe(pipeline)
    except ValueError as error:
        task = "repaints part of a picture" if mask else "starts from a picture"
        raise UsageError(f"diffusers has no pipeline that {task} for a {name}.") from error
    made.set_progress_bar_config(disable=True)
    return made


def paint(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    seed: int | Sequence[int] = 0,
    steps: int = 25,
    guidance: float = 7.5,
    height: int | None = None,
    width: int | None = None,
    negative_prompt: str | None = None,
    image: Image | None = None,
    mask: Image | None = None,
    strength: float | None = None,
    together: int = 1,
    control: Sequence[Image] = (),
    control_scale: Sequence[float] = (),
    ip_adapter_image: Image | None = None,
    ip_adapter_scale: float | None = None,
    tokens: int | None = None,
    progress: Progress | None = None,
) -> list[Image]:
    """Paint each prompt from the same seed, so that a picture does not depend on its neighbours.

    Args:
        seed: Of the CPU generator that draws the first latents (shape 1×4×h/8×w/8, float32); or one for
            each prompt.
        steps: Scheduler steps.
        guidance: Classifier-free guidance scale; 1 or less switches it off.
        height / width: Pixels; the picture's own, or the native size, when None.
        image: Start from this picture, scaled to that size.
        mask: Repaint the picture where this is white, and keep it where it is black.
        strength: How much of the picture is taken away first, above 0 to 1; the pipeline's own when None.
        together: So many prompts in one batch; what is drawn for each stays its own.
        control: What each ControlNet reads (edges, depth, a pose …), scaled to the size painted.
        control_scale: How much they count: one number for all or one for each; the pipeline's own when empty.
        ip_adapter_image: What the IP-Adapter looks at.
        ip_adapter_scale: How much that counts; 1 when None.
        tokens: `max_sequence_length` of the pipeline. None takes what an artifact's components were baked
            for, else the pipeline's own.

    Raises:
        UsageError: A size the VAE's factor does not divide, or that the artifact was not baked for; a
            task or setting that the model has not.
    """
    report = progress or NullProgress()
    asked = pipeline
    seen = looking(pipeline, ip_adapter_image, ip_adapter_scale)
    if getattr(pipeline, "exporter_generic", None):
        from exporter import generic_pipeline

        return generic_pipeline.paint(
            pipeline, prompts, seed=seed, steps=steps, guidance=guidance, height=height, width=width,
            progress=report, negative_prompt=negative_prompt, image=image, mask=mask, strength=strength,
            control=control or None, control_scale=control_scale or None,
        )  # fmt: skip
    pipeline = for_task(pipeline, image=image is not None, mask=mask is not None)
    native = native_size(pipeline)
    shown = image if image is not None else next(iter(control), None)
    fits = shown is not None and not is_baked(pipeline)
    shape = shown.size if shown is not None and fits and not height and not width else None
    native = _size_of(shown, pipeline) if shown is not None and fits else native
    height, width = height or native[0], width or native[1]
    _check_size(pipeline, height, width)
    known = inspect.signature(pipeline.__call__).parameters
    given: dict[str, Any] = {"height": height, "width": width, "negative_prompt": negative_prompt}
    if negative_prompt is not None and "negative_prompt" not in known:
        raise UsageError(f"A {type(pipeline).__name__} takes no negative prompt.")
    given = {name: value for name, value in given.items() if name in known}
    if negative_prompt is None:  # its default: of some pipelines the empty prompt
        given.pop("negative_prompt", None)
    tokens = baked_tokens(pipeline) if tokens is None else tokens
    given |= {"max_sequence_length": tokens} if tokens is not None else {}
    given |= at_the_size_asked_for(known) | as_written(known)
    given |= seen | following(pipeline, control, control_scale, (width, height), shape or (width, height))
    if image is not None:
        given |= _starting_point(image, mask, (width, height))
    if strength is not None:
        if image is None:
            raise UsageError("A strength needs a picture to start from.", hint="Add --image FILE.")
        given["strength"] = strength
    if "strength" in known and image is not None:
        chosen = strength if strength is not None else float(known["strength"].default)
        if not 0 < chosen <= 1:
            raise UsageError(f"The strength is above 0 and at most 1, not {chosen:g}.")
        if int(steps * chosen) < 1:
            raise UsageError(
                f"{steps} steps at strength {chosen:g} leave none to do.",
                hint=f"Take at least {math.ceil(1 / chosen)} steps.",
            )
    pictures = []
    seeds = [seed] * len(prompts) if isinstance(seed, int) else seed
    for first in range(0, len(prompts), together):
        group = list(prompts[first : first + together])
        more = f" and {len(group) - 1} more" if len(group) > 1 else ""
        report.start(f"painting “{group[0]}”{more}", steps)
        drawn = [torch.Generator("cpu").manual_seed(one) for one in seeds[first : first + together]]

        def step(_: Any, index: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:
            report.update(index + 1, f"step {index + 1} of {steps}")
            return values

        result = pipeline(
            group if more else group[0],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=drawn if more else drawn[0],
            **watched(known, step),
            **given,
        )
        note_withheld(asked, result, first, len(group))
        pictures += result.images
        report.done()
    return pictures


def _starting_point(image: Image, mask: Image | None, size: tuple[int, int]) -> dict[str, Any]:
    from PIL.Image import Resampling

    given = {"image": image.convert("RGB").resize(size, Resampling.LANCZOS)}
    if mask is not None:
        given["mask_image"] = mask.convert("L").resize(size, Resampling.NEAREST)
    return given


def _size_of(image: Image, pipeline: Any) -> tuple[int, int]:
    """(height, width) of a picture, as multiples of what the denoiser divides (a UNet halves each level)."""
    levels = len(denoiser(pipeline).config.get("block_out_channels") or (0,))
    multiple = _step(pipeline) * 2 ** (levels - 1)
    return tuple(max(1, round(side / multiple)) * multiple for side in (image.height, image.width))  # type: ignore[return-value]


def is_baked(pipeline: Any) -> bool:
    """Whether an artifact paints in one size only."""
    baked = _baked(pipeline)
    return baked is not None and isinstance(baked[0], int)


def _check_size(pipeline: Any, height: int, width: int) -> None:
    step, factor = _step(pipeline), pipeline.vae_scale_factor
    if height % step or width % step or height <= 0 or width <= 0:
        raise UsageError(f"Height and width must be multiples of {step}, not {height}×{width}.")
    for have, wanted in zip(_baked(pipeline) or (), (height, width), strict=False):
        if isinstance(have, int) and have * factor != wanted:
            baked = "×".join(str(n * factor) if isinstance(n, int) else "any" for n in _baked(pipeline) or ())
            raise UsageError(
                f"This artifact was baked for {baked} pixels, not {height}×{width}.",
                hint="Leave out --height and --width, or convert without --static.",
            )
