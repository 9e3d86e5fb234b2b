"""RUN: exported components inside a diffusers pipeline, the same for every target.

The pipeline is diffusers' own; each heavy component is replaced by a module that hands its tensors
to a `Runner`. So scheduler, guidance and tokenisation are the same code for every format, and a
difference between two pictures is a difference between two components.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import torch

from exporter.architectures import components_of, is_generic
from exporter.architectures.baked.driving import driver_of
from exporter.architectures.base import whole_module
from exporter.architectures.controlnet import joined
from exporter.architectures.ip_adapter import KEY as IP_ADAPTER
from exporter.artifact import MANIFEST, Artifact, ComponentRecord
from exporter.checkpoints import Checkpoint, open_source
from exporter.checkpoints.lacking import check_whole
from exporter.compiled import Store
from exporter.control import adapter_of, controlnet_of
from exporter.errors import ArtifactError, CheckpointError, UsageError
from exporter.ip_adapter import ExportedPicturedUNet, eyes_of
from exporter.painting import denoiser as denoiser
from exporter.painting import for_task as for_task
from exporter.painting import native_size as native_size
from exporter.painting import open_picture as open_picture
from exporter.painting import paint as paint
from exporter.painting import spare_memory as spare_memory
from exporter.safety_checker import NAME as SAFETY_CHECKER
from exporter.safety_checker import checker_of
from exporter.sizes import at_size
from exporter.stand_ins import ExportedTextEncoder, ExportedTransformer, ExportedUNet, ExportedVae
from exporter.stand_ins_video import CLASS as VIDEO_VAE
from exporter.stand_ins_video import ExportedVideoVae, with_statistics
from exporter.targets import PrecisionHint, Runner, RunOptions, get_target
from exporter.targets.torch_module import torch_device
from exporter.techniques import Named, apply, carried, check
from exporter.techniques.sharded_loading import ShardedLoading

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
ABSENT = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts of a pipeline that it can do without."""


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
    safety_checker: bool = True,
    techniques: Sequence[Named] = (),
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
        safety_checker: Without it, one that is there is not loaded, and every picture is shown.
        techniques: Of a checkpoint: applied to its pipeline, as `exporter.techniques.apply` does, for good.
        intake: Of a checkpoint: keyword arguments of `exporter.checkpoints.open_source` (loras, vae …).

    Raises:
        ArtifactError, CheckpointError: It cannot be opened.
        UntrustedArtifact: It is a program of unknown origin, and `trust` is off.
        BackendMissing: The artifact's runtime is not installed.
        UsageError: The artifact has several sizes, and none is the one asked for; a technique cannot be.
    """
    from exporter.checkpoints.published import local_folder

    path = local_folder(source, revision=revision)
    if path is not None and (path / MANIFEST).is_file():
        named = next((name for name, value in intake.items() if value), None)
        if named is not None:
            raise UsageError(
                f"{source} is an artifact: {named.replace('_', ' ')} cannot be laid over it any more.",
                hint="Give it to `exporter convert`, with the checkpoint.",
            )
        if techniques:
            raise UsageError("Techniques are for checkpoints: those of an artifact were made into it.")
        artifact = at_size(Artifact.open(path), height, width)
        return from_artifact(
            artifact, device=device, precision_hint=precision_hint, trust=trust, spread=spread,
            safety_checker=safety_checker,
        )  # fmt: skip
    return from_checkpoint(
        str(source), device=device, revision=revision, safety_checker=safety_checker, techniques=techniques,
        **intake,
    )  # fmt: skip


def from_checkpoint(
    source: str,
    *,
    device: str | None = None,
    revision: str | None = None,
    safety_checker: bool = True,
    techniques: Sequence[Named] = (),
    **intake: Any,
) -> Any:
    """The reference: diffusers' own pipeline in float32.

    Raises:
        UsageError: A technique cannot be.
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
    chosen = check(techniques, "pytorch", checkpoint.component_classes, checkpoint.pipeline_class, str(where))
    sharded = next((each for each in chosen if isinstance(each, ShardedLoading)), None)
    if sharded is not None:
        given |= joined(sharded.parts(checkpoint, where))
    if not safety_checker and SAFETY_CHECKER in known:
        given |= {SAFETY_CHECKER: None, "requires_safety_checker": False}
    pipeline = cls.from_pretrained(checkpoint.root, torch_dtype=torch.float32, local_files_only=True, **given)
    if is_generic(checkpoint):
        pipeline.exporter_generic = True
    pipeline.set_progress_bar_config(disable=True)
    pipeline.exporter_sharded = sharded
    pipeline.to(where)
    if techniques:
        apply(pipeline, techniques)
    return pipeline


def from_artifact(
    artifact: Artifact,
    *,
    device: str | None = None,
    precision_hint: str | None = None,
    trust: bool = False,
    spread: bool = False,
    safety_checker: bool = True,
) -> Any:
    """The pipeline of an artifact. Close its runners by dropping it.

    Components that were compiled for the device (`exporter.compiled`) are opened as such. The pipeline's
    `exporter_compiled` names them, its `exporter_notes` say why one was not used that is there.
    """
    target = get_target(artifact.manifest.target)
    store = Store(artifact, target)
    runners: dict[str, Runner] = {}
    used = []
    records = artifact.manifest.components
    for record in [r for r in records if safety_checker or r.name != SAFETY_CHECKER]:
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
        pictured = IP_ADAPTER in config
        unet = ExportedPicturedUNet if pictured else ExportedUNet
        modules[kind] = unet(runners[kind], config, driver, {name: runners[name] for name in further})
        modules |= eyes_of(root, runners) if pictured else {}
    if "controlnet" in known:
        modules["controlnet"] = controlnet_of(root, runners)
    if "adapter" in known:
        modules["adapter"] = adapter_of(root, runners)
    if SAFETY_CHECKER in known:
        modules |= checker_of(root, runners)
    vae_folder = "vae_decoder" if (root / "vae_decoder").is_dir() else "vae"
    vae_config = _config(root, vae_folder, "config.json")
    vae: type[ExportedVae] | type[ExportedVideoVae] = ExportedVae
    if vae_config.get("_class_name") == VIDEO_VAE:
        vae, vae_config = ExportedVideoVae, with_statistics(vae_config, root / vae_folder)
    modules["vae"] = vae(runners["vae_decoder"], runners.get("vae_encoder"), vae_config)
    scheduler_config = _config(root, "scheduler", "scheduler_config.json")
    scheduler = getattr(diffusers, scheduler_config["_class_name"]).from_config(scheduler_config)
    if driver is not None:
        driver.begins_with(scheduler)
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
    """The pipeline's own settings in `model_index.json` (`force_zeros_for_empty_prompt` …), with no need of a
    safety checker, and without a watermark, which would hide small differences."""
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
