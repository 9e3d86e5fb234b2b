"""One driver for every run of a pipeline: the reference, its twin and the artifact go through it alike.

The library's own pipeline class runs over *ports*: modules of the right class and config that own no
weights and hand every call to a backend. The three stages (text, denoising, decoding) run one after
the other over all prompts, so that one component at a time is open.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from exporter.architectures import encoded_names, is_generic
from exporter.architectures.baked.driving import Driver, driver_of
from exporter.architectures.base import DENOISERS, origin, runs_each_step
from exporter.architectures.controlnet import control_argument, is_controlnet, joined, numbered
from exporter.architectures.t2i_adapter import NAME as ADAPTER
from exporter.calls import at_the_size_asked_for, watched
from exporter.errors import UnsupportedError
from exporter.parity.arithmetic import Tensors
from exporter.parity.clips import decoded, in_one
from exporter.parity.given import given_to

if TYPE_CHECKING:
    import numpy as np

    from exporter.architectures.base import Component, TensorSpec
    from exporter.checkpoints import Checkpoint

Backend = Callable[[Tensors], Tensors]
OpenBackend = Callable[[str], AbstractContextManager[Backend]]
"""Opens the backend of a component by its name; leaving the context frees it."""


@dataclass(frozen=True)
class Plan:
    """What is painted.

    Attributes:
        prompts: One picture each.
        batch: Pictures per call of the pipeline (an artifact with a baked-in batch needs its own).
        height / width: Pixels.
        seed: Picture `i` starts from the noise of `seed + i`.
        frames: Of each clip; 1 of a model of pictures.
    """

    prompts: tuple[str, ...]
    steps: int
    seed: int
    height: int
    width: int
    batch: int = 1
    guidance: float = 7.5
    frames: int = 1

    def groups(self) -> list[list[int]]:
        """Indices of the prompts of every call; the last one is filled up by repetition."""
        count = len(self.prompts)
        return [[i % count for i in range(s, s + self.batch)] for s in range(0, count, self.batch)]


@dataclass
class Call:
    """One recorded call of a component: float32 inputs by name, and where it happened."""

    inputs: Tensors
    label: str
    order: tuple[int, int]


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


METHODS = {"vae_decoder": "decode", "vae_encoder": "encode"}
"""Of components that are not their module's `forward`."""


class _Ports:
    """The pipeline's modules without weights; calls go to whatever backend is open."""

    def __init__(self, components: Mapping[str, Component], driver: Driver | None) -> None:
        self.components, self.driver = components, driver
        self.open: dict[str, Backend] = {}
        self.calls: dict[str, list[Call]] = {}
        self.where = ("", (0, 0))
        self.modules: dict[str, Any] = {
            n: c.meta_module().inner for n, c in components.items() if n != "vae_encoder"
        }
        for name, component in components.items():
            module = self.modules["vae_decoder" if name == "vae_encoder" else name]
            setattr(module, METHODS.get(name, "forward"), self._route(component, module))

    def _route(self, component: Component, module: Any) -> Callable[..., Any]:
        name = component.name
        if name in METHODS:  # a decorator hides the names of their parameters
            signature = inspect.signature(lambda self, x, temb=None, return_dict=True, generator=None: None)
        else:
            signature = inspect.signature(type(module).forward)
        renamed = {"x": component.inputs[0].name, "temb": "timestep"} if name in METHODS else {}
        harmless = {"return_dict", "generator", "self", "output_hidden_states", "output_attentions"}
        harmless |= {"guess_mode"} if is_controlnet(name) else set()  # never on here

        def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(None, *args, **kwargs).arguments
            bound |= bound.pop("added_cond_kwargs", None) or {}
            said = {k: v for k, v in bound.items() if not (v is None or (isinstance(v, dict) and not v))}
            given = {renamed.get(key, key): value for key, value in numbered(said).items()}
            inputs = {}
            for spec in component.inputs:
                if spec.name not in given:
                    raise UnsupportedError(f"The pipeline calls {name} without {spec.name!r}.")
                value = torch.as_tensor(given.pop(spec.name))
                inputs[spec.name] = value.detach().to(getattr(torch, spec.dtype))
            unknown = sorted(set(given) - harmless)
            if unknown:
                raise UnsupportedError(
                    f"The pipeline passes {unknown[0]!r} to {name}, which no export takes."
                )
            if self.driver is not None and name in DENOISERS:
                return _Outputs({component.outputs[0].name: self.driver(self._ask, inputs).float()})
            outputs = self._ask(name, inputs)
            named = {
                spec.name: outputs[spec.name].float()
                if spec.name in outputs
                else absent(component, spec, inputs)
                for spec in component.outputs
            }
            if is_controlnet(name):
                *down, middle = named.values()
                return down, middle
            if name == ADAPTER:
                return list(named.values())
            return _Outputs(named)

        return call

    def _ask(self, name: str, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        """Run what is open of a component, and record the call."""
        component = self.components[name]
        given = {s.name: inputs[s.name].detach().to(getattr(torch, s.dtype)) for s in component.inputs}
        self.calls.setdefault(name, []).append(Call(given, *self.where))
        return self.open[name](given)


def absent(component: Component, spec: TensorSpec, inputs: Tensors) -> torch.Tensor:
    """Stands for an output that the format does not have: NaN, so that a pipeline that reads it shows."""
    sizes = {
        dim: size
        for given in component.inputs
        for dim, size in zip(given.dims, inputs[given.name].shape, strict=True)
    }
    shape = [
        dim if isinstance(dim, int) else -(-sizes[origin(dim)[0]] // origin(dim)[1]) for dim in spec.dims
    ]
    return torch.full(shape, math.nan)


class _Outputs(tuple):
    """A tuple that also has the attribute names pipelines use."""

    named: Tensors

    def __new__(cls, named: Tensors) -> _Outputs:
        self = super().__new__(cls, [v for n, v in named.items() if not n.startswith("hidden_states.")])
        self.named = named
        return self

    @property
    def last_hidden_state(self) -> torch.Tensor:
        return self.named["last_hidden_state"]

    @property
    def pooler_output(self) -> torch.Tensor:
        return self.named["pooler_output"]

    @property
    def hidden_states(self) -> list[torch.Tensor]:
        return [value for name, value in self.named.items() if name.startswith("hidden_states.")]

    @property
    def sample(self) -> torch.Tensor:
        return self[0]

    @property
    def latent_dist(self) -> Any:
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        if "latent_parameters" not in self.named:  # pipelines ask with hasattr, then for `latents`
            raise AttributeError("latent_dist")
        return DiagonalGaussianDistribution(self.named["latent_parameters"])

    @property
    def latents(self) -> torch.Tensor:
        return self.named["latent_sample"]


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
    """Those components that a run of the pipeline calls: only one that starts from a picture encodes."""
    import diffusers

    if is_generic(checkpoint):
        return list(names)
    takes = inspect.signature(getattr(diffusers, checkpoint.pipeline_class).__call__).parameters
    encodes = "image" in takes and control_argument(takes) != "image"
    return [name for name in names if name != "vae_encoder" or encodes]


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
    ports = _Ports({c.name: c for c in components if c.name in names}, driver_of(checkpoint.techniques))
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
                if each_step or name in (ADAPTER, "vae_encoder"):
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
    return pipeline.encode_prompt(**{name: value for name, value in given.items() if name in known})


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
    pipeline: Any, ports: _Ports, plan: Plan, painted: Painted, g: int, group: list[int],
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
