"""One driver for every run of a pipeline: the reference, its twin and the artifact go through it alike.

The library's own pipeline class runs over *ports*: modules of the right class and config that own no
weights and hand every call to a backend. The three stages (text, denoising, decoding) run one after
the other over all prompts, so that one component at a time is open.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from exporter.architectures import encoded_names, is_generic
from exporter.architectures.baked.driving import driver_of
from exporter.architectures.base import DENOISERS, runs_each_step
from exporter.architectures.controlnet import control_argument, joined
from exporter.architectures.ip_adapter import NAME as IMAGE_ENCODER
from exporter.architectures.safety_checker import NAME as SAFETY_CHECKER
from exporter.architectures.t2i_adapter import NAME as ADAPTER
from exporter.calls import at_the_size_asked_for, texts, watched
from exporter.errors import UnsupportedError
from exporter.parity.clips import decoded, in_one
from exporter.parity.given import given_to
from exporter.parity.ports import Backend as Backend
from exporter.parity.ports import Call as Call
from exporter.parity.ports import OpenBackend as OpenBackend
from exporter.parity.ports import Ports

if TYPE_CHECKING:
    import numpy as np

    from exporter.architectures.base import Component
    from exporter.checkpoints import Checkpoint


@dataclass(frozen=True)
class Plan:
    """What is painted.

    Attributes:
        prompts: One picture each.
        batch: Pictures per call of the pipeline (an artifact with a baked-in batch needs its own).
        height / width: Pixels.
        seed: Picture `i` starts from the noise of `seed + i`.
        frames: Of each clip; 1 of a model of pictures.
        tokens: `max_sequence_length` of the pipeline; None is its own.
    """

    prompts: tuple[str, ...]
    steps: int
    seed: int
    height: int
    width: int
    batch: int = 1
    guidance: float = 7.5
    frames: int = 1
    tokens: int | None = None

    def groups(self) -> list[list[int]]:
        """Indices of the prompts of every call; the last one is filled up by repetition."""
        count = len(self.prompts)
        return [[i % count for i in range(s, s + self.batch)] for s in range(0, count, self.batch)]


@dataclass
class Painted:
    """What one run left behind.

    Attributes:
        latents: Per group, the latents after every step: `[batch, channel, height, width]` float32, or
            `[batch, patch, channel]` where the pipeline keeps them so.
        images: Per group, `[batch, 3, height, width]` float32 in [-1, 1]; of clips
            `[batch, 3, frames, height, width]`.
        calls: Recorded calls by component name.
        timesteps: Per group, the timestep of every step.
    """

    latents: list[list[torch.Tensor]] = field(default_factory=list)
    images: list[torch.Tensor] = field(default_factory=list)
    calls: dict[str, list[Call]] = field(default_factory=dict)
    timesteps: list[list[float]] = field(default_factory=list)

    def pictures(self, group: int, row: int) -> np.ndarray:
        """One picture as `[height, width, channel]` floats in [0, 1]; the frames of a clip one below the
        other."""
        picture = in_one(self.images[group][row])
        return (picture.permute(1, 2, 0) / 2 + 0.5).clamp(0, 1).double().numpy()


def supported(checkpoint: Checkpoint) -> bool:
    """Whether `paint` can run the pipeline: the families of `exporter.architectures`, and others that give
    pictures; no part is lacking."""
    from exporter.architectures import FAMILIES

    if checkpoint.lacking:
        return False
    if is_generic(checkpoint):
        from exporter.architectures.generic import recording_of

        return recording_of(checkpoint).pictures
    return checkpoint.pipeline_class in FAMILIES and any(n in checkpoint.component_classes for n in DENOISERS)


def used(checkpoint: Checkpoint, names: Iterable[str]) -> list[str]:
    """Those components that a run of the pipeline calls: only one that starts from a picture encodes. A
    safety checker is none of them: it would hide what is judged."""
    import diffusers

    if is_generic(checkpoint):
        return list(names)
    takes = inspect.signature(getattr(diffusers, checkpoint.pipeline_class).__call__).parameters
    idle = {SAFETY_CHECKER}
    if "image" not in takes or control_argument(takes) == "image":
        idle.add("vae_encoder")
    return [name for name in names if name not in idle]


def paint(
    checkpoint: Checkpoint,
    components: Sequence[Component],
    plan: Plan,
    open_backend: OpenBackend,
    tick: Callable[[str], None] = lambda text: None,
) -> Painted:
    """Run the pipeline once.

    Args:
        components: All of the checkpoint; those the pipeline does not call are not opened.
        tick: Called with a label after every text encoding, step and decoding.

    Raises:
        UnsupportedError: The pipeline passes something the components have no name for.
    """
    if is_generic(checkpoint):
        from exporter.parity import generic_painting

        return generic_painting.paint(checkpoint, components, plan, open_backend, tick)
    names = used(checkpoint, [c.name for c in components])
    ports = Ports({c.name: c for c in components if c.name in names}, driver_of(checkpoint.techniques))
    pipeline = _pipeline(checkpoint, ports.modules)
    groups = plan.groups()
    painted = Painted(calls=ports.calls)
    embeddings = []
    names_of_texts = encoded_names(checkpoint)
    with torch.no_grad():
        with ExitStack() as stack:
            for name in names:
                if name.startswith("text_encoder"):
                    ports.open[name] = stack.enter_context(open_backend(name))
            for g, group in enumerate(groups):
                ports.where = (f"prompt {g + 1}", (g, 0))
                encoded = _encode(pipeline, plan, [plan.prompts[i] for i in group])
                embeddings.append(dict(zip(names_of_texts, encoded, strict=False)))
                tick("text")
        with ExitStack() as stack:
            for name in names:
                each_step = runs_each_step(name) or ports.components[name].folder in DENOISERS
                if each_step or name in (ADAPTER, IMAGE_ENCODER, "vae_encoder"):
                    ports.open[name] = stack.enter_context(open_backend(name))
            for g, group in enumerate(groups):
                _denoise(pipeline, ports, plan, painted, g, group, embeddings[g], tick)
        with open_backend("vae_decoder") as backend:
            ports.open["vae_decoder"] = backend
            for g, states in enumerate(painted.latents):
                ports.where = (f"prompt {g + 1}", (g, 0))
                if plan.frames > 1 or ports.components["vae_decoder"].clip > 1:
                    painted.images.append(
                        decoded(pipeline, plan, states[-1], ports.components["vae_decoder"])
                    )
                else:
                    latents = _scaled(_unpacked(pipeline, plan, states[-1]), pipeline.vae.config)
                    painted.images.append(pipeline.vae.decode(latents, return_dict=False)[0])
                tick("decode")
    return painted


def _encode(pipeline: Any, plan: Plan, prompts: list[str]) -> Any:
    """What the text encoders make of the prompts, and of an empty one where guidance wants that."""
    known = inspect.signature(pipeline.encode_prompt).parameters
    config = (getattr(pipeline, "unet", None) or pipeline.transformer).config
    embedded = getattr(config, "time_cond_proj_dim", None) is not None
    given: dict[str, Any] = {n: None for n, p in known.items() if p.default is p.empty}
    given |= {"prompt": prompts, "device": torch.device("cpu"), "num_images_per_prompt": 1}
    given["do_classifier_free_guidance"] = plan.guidance > 1 and not embedded
    own = inspect.signature(pipeline.__call__).parameters.get("complex_human_instruction")
    if own is not None:  # what a Sana pipeline puts before every prompt
        given["complex_human_instruction"] = own.default
    given |= {"max_sequence_length": plan.tokens} if plan.tokens is not None else {}
    given = {name: value for name, value in given.items() if name in known}
    return [one for further in texts(known) for one in pipeline.encode_prompt(**given, **further)]


def _unpacked(pipeline: Any, plan: Plan, latents: torch.Tensor) -> torch.Tensor:
    """Latents as pictures; some pipelines keep them as a row of patches."""
    if latents.dim() != 3:
        return latents
    unpacked: torch.Tensor = pipeline._unpack_latents(
        latents, plan.height, plan.width, pipeline.vae_scale_factor
    )
    return unpacked


def _scaled(latents: torch.Tensor, config: Any) -> torch.Tensor:
    """Latents as the VAE takes them; some fine-tunes of SDXL have a mean and deviation by channel."""
    mean, deviation = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is None or deviation is None:
        return latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
    mean, deviation = (torch.tensor(v).view(1, -1, 1, 1) for v in (mean, deviation))
    return latents * deviation / config.scaling_factor + mean


def _denoise(
    pipeline: Any, ports: Ports, plan: Plan, painted: Painted, g: int, group: list[int],
    embeddings: Mapping[str, torch.Tensor | None], tick: Callable[[str], None],
) -> None:  # fmt: skip
    states: list[torch.Tensor] = []
    times: list[float] = []
    ports.where = (f"prompt {g + 1}, step 1", (g, 0))

    def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        states.append(tensors["latents"].detach().clone())
        times.append(float(timestep))
        ports.where = (f"prompt {g + 1}, step {step + 2}", (g, step + 1))
        tick(f"prompt {g + 1}, step {step + 1}")
        return {}

    known = inspect.signature(pipeline.__call__).parameters
    given = given_to(pipeline, plan, len(group))
    given |= {n: v for n, v in embeddings.items() if n in known and v is not None}
    pipeline(
        **given,
        **watched(known, after_step),
        **at_the_size_asked_for(known),
        **({"negative_prompt": None} if "negative_prompt" in known else {}),  # they are encoded already
        guidance_scale=plan.guidance,
        generator=[
            torch.Generator().manual_seed(plan.seed + position) for position in _seeds(plan, g, group)
        ],
        output_type="latent",
    )
    painted.latents.append(states)
    painted.timesteps.append(times)


def _seeds(plan: Plan, g: int, group: list[int]) -> list[int]:
    return [g * plan.batch + row for row in range(len(group))]


def _pipeline(checkpoint: Checkpoint, modules: Mapping[str, torch.nn.Module]) -> Any:
    """The library's pipeline over the ports; its small parts come from the checkpoint's files."""
    import diffusers
    import transformers

    base = getattr(diffusers, checkpoint.pipeline_class)
    cpu = property(lambda self: torch.device("cpu"))  # ports are on the meta device
    kind = type(base.__name__, (base,), {"device": cpu, "_execution_device": cpu})
    parts: dict[str, Any] = {}
    for name, (library, class_name) in checkpoint.component_classes.items():
        if name in ("vae", "safety_checker", "feature_extractor", "image_encoder") or name in modules:
            continue
        module = {"diffusers": diffusers, "transformers": transformers}.get(library)
        part = getattr(module, class_name, None)
        if part is None:
            raise UnsupportedError(
                f"model_index.json names {library}.{class_name}, which this version lacks."
            )
        parts[name] = part.from_pretrained(checkpoint.root / name)
    parts["vae"] = modules["vae_decoder"]
    parts |= {name: module for name, module in joined(modules).items() if name != "vae_decoder"}
    known = inspect.signature(base.__init__).parameters
    settings: dict[str, Any] = {
        n: v for n, v in checkpoint.index.items() if n in known and not isinstance(v, list | tuple | dict)
    }
    settings |= {"requires_safety_checker": False, "add_watermarker": False}
    absent = {name: None for name, p in known.items() if name not in parts and p.default is not p.empty}
    absent |= dict.fromkeys(n for n in known if n.startswith(("text_encoder", "tokenizer")))
    absent |= dict.fromkeys(("safety_checker", "feature_extractor"))
    pipeline = kind(**{n: v for n, v in {**absent, **settings, **parts}.items() if n in known})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
