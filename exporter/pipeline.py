"""RUN: exported components inside a diffusers pipeline, the same for every target.

The pipeline is diffusers' own; each heavy component is replaced by a module that hands its tensors
to a `Runner`. So scheduler, guidance and tokenisation are the same code for every format, and a
difference between two pictures is a difference between two components.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
import torch
from torch import nn

from exporter.architectures import components_of
from exporter.architectures.base import whole_module
from exporter.artifact import MANIFEST, Artifact, ComponentRecord
from exporter.checkpoints import Checkpoint, open_source
from exporter.errors import ArtifactError, BackendMissing, CheckpointError, InputError, UsageError
from exporter.progress import NullProgress, Progress
from exporter.targets import PrecisionHint, Runner, RunOptions, get_target

if TYPE_CHECKING:
    from PIL.Image import Image


class ExportedModule(nn.Module):
    """A component that computes in another runtime. Looks like the diffusers module it stands for."""

    def __init__(self, runner: Runner, config: Mapping[str, Any]) -> None:
        super().__init__()
        from diffusers.configuration_utils import FrozenDict

        self.runner = runner
        self.config = FrozenDict(dict(config))
        self.device = torch.device("cpu")
        self.dtype = torch.float32

    def call(self, runner: Runner, **inputs: torch.Tensor) -> list[torch.Tensor]:
        """Run with inputs cast to the declared dtypes; outputs as float32, in declared order.

        A runner with a baked-in batch gets its rows in portions of that size, the last one padded.
        """
        arrays = {}
        for spec in runner.inputs:
            array = inputs[spec.name].detach().cpu().numpy()
            if spec.dtype.startswith("int") and not np.array_equal(array, np.trunc(array)):
                raise InputError(
                    f"The artifact takes {spec.name!r} as {spec.dtype}, "
                    f"the scheduler gives fractions ({array})."
                )
            array = array.astype(spec.dtype, copy=False)
            arrays[spec.name] = array.reshape(-1)[:1] if spec.dims == [1] and array.ndim == 0 else array
        outputs = self._in_portions(runner, arrays)
        return [torch.from_numpy(np.asarray(outputs[spec.name])).float() for spec in runner.outputs]

    def _in_portions(self, runner: Runner, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        batched = [s.name for s in runner.inputs if len(s.dims) > 1]
        baked = {int(s.dims[0]) for s in runner.inputs if s.name in batched and isinstance(s.dims[0], int)}
        rows = arrays[batched[0]].shape[0]
        if len(baked) != 1 or rows == (size := baked.pop()):
            return runner.run(arrays)
        collected: dict[str, list[np.ndarray]] = {}
        for start in range(0, rows, size):
            picked = [min(start + offset, rows - 1) for offset in range(size)]
            portion = {n: a[picked] if n in batched else a for n, a in arrays.items()}
            for name, value in runner.run(portion).items():
                collected.setdefault(name, []).append(value[: rows - start])
        return {name: np.concatenate(values) for name, values in collected.items()}


class ExportedTextEncoder(ExportedModule):
    """Stands for a `CLIPTextModel`."""

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, **options: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        if options.get("output_hidden_states"):
            raise UsageError("clip_skip needs the hidden states, which this artifact does not give.")
        hidden, pooled = self.call(self.runner, input_ids=input_ids)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)  # type: ignore[arg-type]


class ExportedTextLayers(ExportedModule):
    """Stands for a `CLIPTextModel` or `CLIPTextModelWithProjection` of SDXL: gives every hidden state."""

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, **options: Any) -> Any:
        from transformers.utils import ModelOutput

        named = zip(
            (s.name for s in self.runner.outputs), self.call(self.runner, input_ids=input_ids), strict=True
        )
        whole, states = {}, []
        for name, value in named:
            if name.startswith("hidden_states."):
                states.append(value)
            else:
                whole[name] = value
        return ModelOutput(**whole, hidden_states=tuple(states))


class ExportedUNet(ExportedModule):
    """Stands for a `UNet2DConditionModel`."""

    def __init__(self, runner: Runner, config: Mapping[str, Any]) -> None:
        super().__init__(runner, config)
        width = config.get("projection_class_embeddings_input_dim")
        if width:  # the SDXL pipeline measures its time ids against this layer
            self.add_embedding = SimpleNamespace(linear_1=SimpleNamespace(in_features=width))

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        return_dict: bool = True,
        added_cond_kwargs: Mapping[str, torch.Tensor] | None = None,
        **ignored: Any,
    ) -> Any:
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

        (out,) = self.call(
            self.runner,
            sample=sample,
            timestep=torch.as_tensor(timestep),
            encoder_hidden_states=encoder_hidden_states,
            **(added_cond_kwargs or {}),
        )
        return UNet2DConditionOutput(sample=out) if return_dict else (out,)


class ExportedVae(ExportedModule):
    """Stands for an `AutoencoderKL`; decoder and encoder are two exported components."""

    def __init__(self, decoder: Runner, encoder: Runner | None, config: Mapping[str, Any]) -> None:
        super().__init__(decoder, config)
        self.encoder_runner = encoder

    def decode(self, z: torch.Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        from diffusers.models.autoencoders.vae import DecoderOutput

        (picture,) = self.call(self.runner, latent_sample=z)
        return DecoderOutput(sample=picture) if return_dict else (picture,)

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
        from diffusers.models.modeling_outputs import AutoencoderKLOutput

        if self.encoder_runner is None:
            raise ArtifactError("This artifact has no vae_encoder, so it cannot start from a picture.")
        (moments,) = self.call(self.encoder_runner, sample=x)
        posterior = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)


def load(
    source: str | Path,
    *,
    device: str | None = None,
    precision_hint: str | None = None,
    revision: str | None = None,
    trust: bool = False,
    **intake: Any,
) -> Any:
    """A diffusers pipeline whose components are the exported ones, or the PyTorch reference.

    Args:
        source: An artifact (a folder, or the Hub id of a published one), or any checkpoint that
            `exporter convert` takes.
        device: The runtime's device for an artifact; a torch device for a checkpoint.
        precision_hint: `f32`, `bf16`, `f16` or `default`; None takes what the artifact was made for.
        trust: Open an artifact that is a program (TorchScript) although it was not made here.
        intake: Of a checkpoint: keyword arguments of `exporter.checkpoints.open_source` (loras, vae …).

    Raises:
        ArtifactError, CheckpointError: It cannot be opened.
        UntrustedArtifact: It is a program of unknown origin, and `trust` is off.
        BackendMissing: The artifact's runtime is not installed.
    """
    from exporter.checkpoints.published import local_folder

    path = local_folder(source, revision=revision)
    if path is not None and (path / MANIFEST).is_file():
        return from_artifact(Artifact.open(path), device=device, precision_hint=precision_hint, trust=trust)
    return from_checkpoint(str(source), device=device, revision=revision, **intake)


def from_checkpoint(
    source: str, *, device: str | None = None, revision: str | None = None, **intake: Any
) -> Any:
    """The reference: diffusers' own pipeline in float32.

    Raises:
        UsageError: PyTorch knows no such device.
        BackendMissing: It knows it, but there is none here.
    """
    import diffusers

    where = _torch_device(device or "cpu")
    checkpoint = open_source(source, revision=revision, **intake)
    checkpoint.validate()
    cls = getattr(diffusers, checkpoint.pipeline_class, None)
    if not isinstance(cls, type) or not issubclass(cls, diffusers.DiffusionPipeline):
        raise CheckpointError(f"This diffusers has no pipeline {checkpoint.pipeline_class!r}.")
    if type(checkpoint) is Checkpoint:
        given: dict[str, Any] = {}
    else:  # weights that do not lie in the folder as diffusers wants them
        given = {c.folder: whole_module(c) for c in components_of(checkpoint)}
    pipeline = cls.from_pretrained(checkpoint.root, torch_dtype=torch.float32, local_files_only=True, **given)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(where)


def _torch_device(name: str) -> torch.device:
    try:
        device = torch.device(name.lower())  # OpenVINO's and ours differ in case only
    except RuntimeError as error:
        raise UsageError(f"PyTorch knows no device {name!r}.", hint="Try cpu, cuda or mps.") from error
    try:
        torch.empty(1, device=device)
        if device.type == "meta":
            raise RuntimeError("a meta device holds no values")
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise BackendMissing(
            f"PyTorch finds no device {name!r} here.", hint="`exporter doctor` lists what there is."
        ) from error
    return device


def from_artifact(
    artifact: Artifact, *, device: str | None = None, precision_hint: str | None = None, trust: bool = False
) -> Any:
    """The pipeline of an artifact. Close its runners by dropping it."""
    target = get_target(artifact.manifest.target)
    runners: dict[str, Runner] = {}
    for record in artifact.manifest.components:
        runners[record.name] = target.open(
            artifact.root, record, _run_options(record, device, precision_hint, trust)
        )
    return assemble(artifact.root, artifact.manifest.source.pipeline_class, runners)


def assemble(root: Path, pipeline_class: str, runners: Mapping[str, Runner]) -> Any:
    """Put runners into the diffusers pipeline described by the small files below `root`.

    Raises:
        ArtifactError: A component the pipeline needs is not among the runners.
    """
    import diffusers
    from transformers import CLIPTokenizer

    large = "XL" in pipeline_class
    encoders = ("text_encoder", "text_encoder_2") if large else ("text_encoder",)
    for name in (*encoders, "unet", "vae_decoder"):
        if name not in runners:
            raise ArtifactError(
                f"The artifact has no {name}, so it cannot paint.",
                hint="Convert again without --component.",
            )
    scheduler_config = _config(root, "scheduler", "scheduler_config.json")
    scheduler = getattr(diffusers, scheduler_config["_class_name"]).from_config(scheduler_config)
    text_module = ExportedTextLayers if large else ExportedTextEncoder
    parts: dict[str, Any] = {}
    for name in encoders:
        parts[name] = text_module(runners[name], _config(root, name, "config.json"))
        tokenizer = name.replace("text_encoder", "tokenizer")
        parts[tokenizer] = CLIPTokenizer.from_pretrained(root / tokenizer, local_files_only=True)
    if large:
        index = _config(root, ".", "model_index.json")
        zeros = bool(index.get("force_zeros_for_empty_prompt", True))
        parts |= {"force_zeros_for_empty_prompt": zeros, "add_watermarker": False}
    else:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    vae_folder = "vae_decoder" if (root / "vae_decoder").is_dir() else "vae"
    cls = getattr(diffusers, pipeline_class)
    pipeline = cls(
        unet=ExportedUNet(runners["unet"], _config(root, "unet", "config.json")),
        vae=ExportedVae(
            runners["vae_decoder"], runners.get("vae_encoder"), _config(root, vae_folder, "config.json")
        ),
        scheduler=scheduler,
        **parts,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _run_options(
    record: ComponentRecord, device: str | None, precision_hint: str | None, trust: bool
) -> RunOptions:
    hint = precision_hint or record.details.get("precision_hint") or "f32"
    if hint not in get_args(PrecisionHint):
        raise UsageError(f"Precision hint {hint!r} is none of f32, bf16, f16, default.")
    return RunOptions(device=device, precision_hint=cast("PrecisionHint", hint), trust=trust)


def _config(root: Path, folder: str, name: str) -> dict[str, Any]:
    try:
        return json.loads((root / folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}/{name} of the artifact cannot be read: {error}.") from error


def native_size(pipeline: Any) -> tuple[int, int]:
    """(height, width) in pixels: what a static artifact was baked for, else the training size."""
    runner = getattr(pipeline.unet, "runner", None)
    if runner is not None:
        dims = next(s.dims for s in runner.inputs if s.name == "sample")
        if isinstance(dims[2], int) and isinstance(dims[3], int):
            return dims[2] * pipeline.vae_scale_factor, dims[3] * pipeline.vae_scale_factor
    size = pipeline.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return height * pipeline.vae_scale_factor, width * pipeline.vae_scale_factor


def paint(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    steps: int = 25,
    guidance: float = 7.5,
    height: int | None = None,
    width: int | None = None,
    negative_prompt: str | None = None,
    progress: Progress | None = None,
) -> list[Image]:
    """Paint each prompt from the same seed, so that a picture does not depend on its neighbours.

    Args:
        seed: Of the CPU generator that draws the first latents (shape 1×4×h/8×w/8, float32).
        steps: Scheduler steps.
        guidance: Classifier-free guidance scale; 1 or less switches it off.
        height / width: Pixels; the native size when None.

    Raises:
        UsageError: A size the VAE's factor does not divide, or that the artifact was not baked for.
    """
    report = progress or NullProgress()
    native = native_size(pipeline)
    height, width = height or native[0], width or native[1]
    _check_size(pipeline, height, width)
    pictures = []
    for prompt in prompts:
        report.start(f"painting “{prompt}”", steps)

        def step(_: Any, index: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:
            report.update(index + 1, f"step {index + 1} of {steps}")
            return values

        result = pipeline(
            prompt,
            negative_prompt=negative_prompt,
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator("cpu").manual_seed(seed),
            callback_on_step_end=step,
        )
        pictures.append(result.images[0])
        report.done()
    return pictures


def _check_size(pipeline: Any, height: int, width: int) -> None:
    factor = pipeline.vae_scale_factor
    if height % factor or width % factor or height <= 0 or width <= 0:
        raise UsageError(f"Height and width must be multiples of {factor}, not {height}×{width}.")
    runner = getattr(pipeline.unet, "runner", None)
    if runner is None:
        return
    dims = next(s.dims for s in runner.inputs if s.name == "sample")
    for have, wanted in zip(dims[2:], (height // factor, width // factor), strict=True):
        if isinstance(have, int) and have != wanted:
            baked = f"{dims[2] * factor}×{dims[3] * factor}"
            raise UsageError(
                f"This artifact was baked for {baked} pixels, not {height}×{width}.",
                hint="Leave out --height and --width, or convert without --static.",
            )
