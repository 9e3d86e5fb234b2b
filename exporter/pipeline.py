"""RUN: exported components inside a diffusers pipeline, the same for every target.

The pipeline is diffusers' own; each heavy component is replaced by a module that hands its tensors
to a `Runner`. So scheduler, guidance and tokenisation are the same code for every format, and a
difference between two pictures is a difference between two components.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import torch

from exporter.architectures import components_of, is_generic
from exporter.architectures.baked.driving import driver_of
from exporter.architectures.base import whole_module
from exporter.architectures.controlnet import control_argument, joined
from exporter.artifact import MANIFEST, Artifact, ComponentRecord
from exporter.calls import as_written, at_the_size_asked_for, watched
from exporter.checkpoints import Checkpoint, open_source
from exporter.checkpoints.lacking import check_whole
from exporter.compiled import Store
from exporter.control import adapter_of, controlnet_of, following
from exporter.errors import ArtifactError, CheckpointError, InputError, UsageError
from exporter.progress import NullProgress, Progress
from exporter.sizes import at_size
from exporter.stand_ins import ExportedTextEncoder, ExportedTransformer, ExportedUNet, ExportedVae
from exporter.stand_ins_video import CLASS as VIDEO_VAE
from exporter.stand_ins_video import ExportedVideoVae, with_statistics
from exporter.targets import PrecisionHint, Runner, RunOptions, get_target
from exporter.targets.torch_module import torch_device
from exporter.techniques import carried

if TYPE_CHECKING:
    from PIL.Image import Image

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
ABSENT = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts of a pipeline that are not exported and that it can do without."""


def load(
    source: str | Path,
    *,
    device: str | None = None,
    precision_hint: str | None = None,
    revision: str | None = None,
    trust: bool = False,
    height: int | None = None,
    width: int | None = None,
    spread: bool = False,
    **intake: Any,
) -> Any:
    """A diffusers pipeline whose components are the exported ones, or the PyTorch reference.

    Args:
        source: An artifact (a folder, or the Hub id of a published one), or any checkpoint that
            `exporter convert` takes.
        device: The runtime's device for an artifact; a torch device for a checkpoint.
        precision_hint: `f32`, `bf16`, `f16` or `default`; None takes what the artifact was made for.
        trust: Open an artifact that is a program (TorchScript, .pt2) although it was not made here.
        height / width: Pixels that will be asked for: an artifact with several sizes is opened at the one
            that fits, and at its first one when None.
        spread: Of an artifact whose format can: share several prompts among all devices of the kind.
        intake: Of a checkpoint: keyword arguments of `exporter.checkpoints.open_source` (loras, vae …).

    Raises:
        ArtifactError, CheckpointError: It cannot be opened.
        UntrustedArtifact: It is a program of unknown origin, and `trust` is off.
        BackendMissing: The artifact's runtime is not installed.
        UsageError: The artifact has several sizes, and none is the one asked for.
    """
    from exporter.checkpoints.published import local_folder

    path = local_folder(source, revision=revision)
    if path is not None and (path / MANIFEST).is_file():
        named = next((name for name, value in intake.items() if value), None)
        if named is not None:
            raise UsageError(
                f"{source} is an artifact: {named.replace('_', ' ')} cannot be laid over it any more.",
                hint="Give it to `exporter convert`, which fuses it into what it writes.",
            )
        artifact = at_size(Artifact.open(path), height, width)
        return from_artifact(
            artifact, device=device, precision_hint=precision_hint, trust=trust, spread=spread
        )
    return from_checkpoint(str(source), device=device, revision=revision, **intake)


def from_checkpoint(
    source: str, *, device: str | None = None, revision: str | None = None, **intake: Any
) -> Any:
    """The reference: diffusers' own pipeline in float32.

    Raises:
        BackendMissing: PyTorch has no such device here.
    """
    import diffusers

    where = torch_device(device)
    checkpoint = open_source(source, revision=revision, **intake)
    check_whole(checkpoint)
    checkpoint.validate()
    cls = getattr(diffusers, checkpoint.pipeline_class, None)
    if not isinstance(cls, type) or not issubclass(cls, diffusers.DiffusionPipeline):
        raise CheckpointError(f"This diffusers has no pipeline {checkpoint.pipeline_class!r}.")
    known = inspect.signature(cls.__init__).parameters
    parts = [name for name in (*TEXT_ENCODERS, *TOKENIZERS) if name in known]
    given: dict[str, Any] = {name: None for name in parts if name not in checkpoint.component_classes}
    if "add_watermarker" in known:
        given["add_watermarker"] = False
    if type(checkpoint) is not Checkpoint:  # weights that do not lie in the folder as diffusers wants them
        given |= joined({c.folder: whole_module(c) for c in components_of(checkpoint)})
    pipeline = cls.from_pretrained(checkpoint.root, torch_dtype=torch.float32, local_files_only=True, **given)
    if is_generic(checkpoint):
        pipeline.exporter_generic = True
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(where)


def from_artifact(
    artifact: Artifact,
    *,
    device: str | None = None,
    precision_hint: str | None = None,
    trust: bool = False,
    spread: bool = False,
) -> Any:
    """The pipeline of an artifact. Close its runners by dropping it.

    Components that were compiled for the device (`exporter.compiled`) are opened as such. The pipeline's
    `exporter_compiled` names them, its `exporter_notes` say why one was not used that is there.
    """
    target = get_target(artifact.manifest.target)
    store = Store(artifact, target)
    runners: dict[str, Runner] = {}
    used = []
    for record in artifact.manifest.components:
        options = replace(run_options(record, device, precision_hint, trust), spread=spread)
        compiled = store.find(record, options)
        if compiled is not None:
            try:
                runners[record.name] = target.open(artifact.root, record, replace(options, compiled=compiled))
                used.append(record.name)
                continue
            except ArtifactError as error:
                store.refused(error.message)
        runners[record.name] = target.open(artifact.root, record, options)
    techniques = carried(artifact.manifest)
    pipeline = assemble(artifact.root, artifact.manifest.source.pipeline_class, runners, techniques)
    pipeline.exporter_notes, pipeline.exporter_compiled = store.reasons, used
    pipeline.exporter_runners = runners
    return pipeline


def compile_seconds(pipeline: Any) -> float:
    """What a pipeline's runtimes took so far to compile for shapes they met: paid once, not per picture."""
    runners: Mapping[str, Runner] = getattr(pipeline, "exporter_runners", {})
    return sum(runner.compile_seconds for runner in runners.values())


def assemble(
    root: Path,
    pipeline_class: str,
    runners: Mapping[str, Runner],
    techniques: Sequence[tuple[str, Mapping[str, Any]]] = (),
) -> Any:
    """Put runners into the diffusers pipeline described by the small files below `root`.

    Args:
        techniques: That the artifact carries, each with its options.

    Raises:
        ArtifactError: A component the pipeline needs is not among the runners.
    """
    import diffusers

    from exporter import generic_pipeline

    if generic_pipeline.is_recorded(root):
        return generic_pipeline.assemble(root, runners)
    cls = getattr(diffusers, pipeline_class)
    known = inspect.signature(cls.__init__).parameters
    modules: dict[str, Any] = {}
    for name in TEXT_ENCODERS:
        if name in known and name in runners:
            modules[name] = ExportedTextEncoder(runners[name], _config(root, name, "config.json"))
    kind = "transformer" if "transformer" in known else "unet"
    driver = driver_of(techniques)
    further = driver.further if driver is not None else ()
    for name in (kind, *further, "vae_decoder", *_missing_texts(root, known, modules)):
        if name not in runners:
            raise ArtifactError(
                f"The artifact has no {name}, so it cannot paint.",
                hint="Convert again without --component.",
            )
    config = _config(root, kind, "config.json")
    if kind == "transformer":
        modules[kind] = ExportedTransformer(runners[kind], config)
    else:
        modules[kind] = ExportedUNet(runners[kind], config, driver, {name: runners[name] for name in further})
    if "controlnet" in known:
        modules["controlnet"] = controlnet_of(root, runners)
    if "adapter" in known:
        modules["adapter"] = adapter_of(root, runners)
    vae_folder = "vae_decoder" if (root / "vae_decoder").is_dir() else "vae"
    vae_config = _config(root, vae_folder, "config.json")
    vae: type[ExportedVae] | type[ExportedVideoVae] = ExportedVae
    if vae_config.get("_class_name") == VIDEO_VAE:
        vae, vae_config = ExportedVideoVae, with_statistics(vae_config, root / vae_folder)
    modules["vae"] = vae(runners["vae_decoder"], runners.get("vae_encoder"), vae_config)
    scheduler_config = _config(root, "scheduler", "scheduler_config.json")
    scheduler = getattr(diffusers, scheduler_config["_class_name"]).from_config(scheduler_config)
    tokenizers = {
        name: _tokenizer(root / name) for name in TOKENIZERS if name in known and (root / name).is_dir()
    }
    parts = {**modules, **tokenizers, **_settings(root, known), "scheduler": scheduler}
    absent = {*TEXT_ENCODERS, *TOKENIZERS, *ABSENT} - set(parts)
    pipeline = cls(**parts, **{name: None for name in absent if name in known})
    pipeline.set_progress_bar_config(disable=True)
    names = [name for name, _ in techniques]
    spare_memory(pipeline, tiling="vae-tiling" in names, slicing="vae-slicing" in names)
    return pipeline


def _tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder, of the class that its config names; CLIP's where it names none."""
    from transformers import AutoTokenizer, CLIPTokenizer

    path = folder / "tokenizer_config.json"
    named = str(_config(folder, ".", path.name).get("tokenizer_class") or "") if path.is_file() else ""
    loader = AutoTokenizer if named and not named.startswith("CLIPTokenizer") else CLIPTokenizer
    return loader.from_pretrained(folder, local_files_only=True)


def _missing_texts(root: Path, known: Mapping[str, Any], modules: Mapping[str, Any]) -> list[str]:
    """Text encoders without which the denoiser gets less text than it takes (an XL refiner has one of two;
    of SD3's three the pipeline does without the last)."""
    if "transformer" in known:
        return [n for n in TEXT_ENCODERS[:2] if n in known and n not in modules]
    if not (root / "unet" / "config.json").is_file():
        return []
    cross = _config(root, "unet", "config.json").get("cross_attention_dim")
    wanted = cross[0] if isinstance(cross, list) else cross
    if sum(module.config["hidden_size"] for module in modules.values()) == wanted:
        return []
    return [n for n in ("text_encoder_2", "text_encoder") if n in known and n not in modules]


def _settings(root: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """The pipeline's own settings in `model_index.json` (`force_zeros_for_empty_prompt` …), without the
    safety checker, which is not exported, and without a watermark, which would hide small differences."""
    index = _config(root, ".", "model_index.json") if (root / "model_index.json").is_file() else {}
    found = {
        name: value
        for name, value in index.items()
        if name in known and not isinstance(value, list | tuple | dict)
    }
    off = {"requires_safety_checker": False, "add_watermarker": False}
    return found | {name: value for name, value in off.items() if name in known}


def run_options(
    record: ComponentRecord, device: str | None, precision_hint: str | None, trust: bool
) -> RunOptions:
    """How a component is run: as asked for, else as it was made for.

    Raises:
        UsageError: No such hint.
    """
    hint = precision_hint or record.details.get("precision_hint") or "f32"
    if hint not in get_args(PrecisionHint):
        raise UsageError(f"Precision hint {hint!r} is none of f32, bf16, f16, default.")
    return RunOptions(device=device, precision_hint=cast("PrecisionHint", hint), trust=trust)


def _config(root: Path, folder: str, name: str) -> dict[str, Any]:
    try:
        return json.loads((root / folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}/{name} of the artifact cannot be read: {error}.") from error


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


def for_task(pipeline: Any, *, image: bool, mask: bool) -> Any:
    """The pipeline of the same components that starts from noise, from a picture, or repaints part of one.

    Raises:
        UsageError: The model cannot do that.
    """
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting

    name = type(pipeline).__name__
    own = set(inspect.signature(pipeline.__call__).parameters)
    if control_argument(own) == "image":  # what its ControlNet reads, not what it starts from
        own.remove("image")
    channels = int(denoiser(pipeline).config.in_channels)
    if mask and not image:
        raise UsageError("A mask needs the picture that it masks.", hint="Add --image FILE.")
    if not mask and (channels == 9 or ("mask_image" in own and channels > _out_channels(pipeline))):
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

    Raises:
        UsageError: A size the VAE's factor does not divide, or that the artifact was not baked for; a
            task or setting that the model has not.
    """
    report = progress or NullProgress()
    if getattr(pipeline, "exporter_generic", None):
        from exporter import generic_pipeline

        return generic_pipeline.paint(
            pipeline, prompts, seed=seed, steps=steps, guidance=guidance, height=height, width=width,
            progress=report, negative_prompt=negative_prompt, image=image, mask=mask, strength=strength,
        )  # fmt: skip
    pipeline = for_task(pipeline, image=image is not None, mask=mask is not None)
    native = native_size(pipeline)
    shown = image if image is not None else next(iter(control), None)
    fits = shown is not None and not _is_baked(pipeline)
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
    given |= at_the_size_asked_for(known) | as_written(known)
    given |= following(pipeline, control, control_scale, (width, height), shape or (width, height))
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


def _is_baked(pipeline: Any) -> bool:
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
