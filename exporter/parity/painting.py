"""One driver for every run of a pipeline: the reference, its twin and the artifact go through it alike.

The library's own pipeline class runs over *ports*: modules of the right class and config that own no
weights and hand every call to a backend. The three stages (text, denoising, decoding) run one after
the other over all prompts, so that one component at a time is open.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from exporter.errors import UnsupportedError
from exporter.parity.arithmetic import Tensors

if TYPE_CHECKING:
    import numpy as np

    from exporter.architectures.base import Component
    from exporter.checkpoints import Checkpoint

Backend = Callable[[Tensors], Tensors]
OpenBackend = Callable[[str], AbstractContextManager[Backend]]
"""Opens the backend of a component by its name; leaving the context frees it."""

FAMILIES = ("StableDiffusionPipeline",)
"""Pipeline classes this driver knows how to run stage by stage."""


@dataclass(frozen=True)
class Plan:
    """What is painted.

    Attributes:
        prompts: One picture each.
        batch: Pictures per call of the pipeline (an artifact with a baked-in batch needs its own).
        height / width: Pixels.
        seed: Picture `i` starts from the noise of `seed + i`.
    """

    prompts: tuple[str, ...]
    steps: int
    seed: int
    height: int
    width: int
    batch: int = 1
    guidance: float = 7.5

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
        latents: Per group, the latents after every step: `[batch, channel, height, width]` float32.
        images: Per group, `[batch, 3, height, width]` float32 in [-1, 1].
        calls: Recorded calls by component name.
        timesteps: Per group, the timestep of every step.
    """

    latents: list[list[torch.Tensor]] = field(default_factory=list)
    images: list[torch.Tensor] = field(default_factory=list)
    calls: dict[str, list[Call]] = field(default_factory=dict)
    timesteps: list[list[float]] = field(default_factory=list)

    def pictures(self, group: int, row: int) -> np.ndarray:
        """One picture as `[height, width, channel]` floats in [0, 1]."""
        picture = (self.images[group][row].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1)
        return picture.double().numpy()


class _Ports:
    """The pipeline's modules without weights; calls go to whatever backend is open."""

    def __init__(self, components: Mapping[str, Component]) -> None:
        self.components = components
        self.open: dict[str, Backend] = {}
        self.calls: dict[str, list[Call]] = {}
        self.where = ("", (0, 0))
        self.modules: dict[str, Any] = {
            n: component.meta_module().inner for n, component in components.items()
        }
        for name, module in self.modules.items():
            target = "decode" if name == "vae_decoder" else "forward"
            setattr(module, target, self._route(name, getattr(type(module), target)))

    def _route(self, name: str, original: Any) -> Callable[..., Any]:
        component = self.components[name]
        if name == "vae_decoder":  # a decorator hides the names of decode()'s parameters
            signature = inspect.signature(lambda self, z, return_dict=True, generator=None: None)
        else:
            signature = inspect.signature(original)
        renamed = {"z": "latent_sample"} if name == "vae_decoder" else {}
        harmless = {"return_dict", "generator", "self", "output_hidden_states", "output_attentions"}

        def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(None, *args, **kwargs).arguments
            given = {renamed.get(key, key): value for key, value in bound.items() if value is not None}
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
            self.calls.setdefault(name, []).append(Call(inputs, *self.where))
            outputs = self.open[name](inputs)
            return _Outputs([outputs[spec.name].float() for spec in component.outputs])

        return call


class _Outputs(tuple):
    """A tuple that also has the attribute names pipelines use."""

    @property
    def last_hidden_state(self) -> torch.Tensor:
        return self[0]

    @property
    def sample(self) -> torch.Tensor:
        return self[0]


def supported(checkpoint: Checkpoint) -> bool:
    """Whether `paint` knows the pipeline class."""
    return checkpoint.pipeline_class in FAMILIES


def paint(
    checkpoint: Checkpoint,
    components: Sequence[Component],
    plan: Plan,
    open_backend: OpenBackend,
    tick: Callable[[str], None] = lambda text: None,
) -> Painted:
    """Run the pipeline once.

    Args:
        components: `text_encoder`, `unet` and `vae_decoder` of the checkpoint.
        tick: Called with a label after every text encoding, step and decoding.

    Raises:
        UnsupportedError: The pipeline passes something the components have no name for.
    """
    ports = _Ports({c.name: c for c in components if c.name != "vae_encoder"})
    pipeline = _pipeline(checkpoint, ports.modules)
    groups = plan.groups()
    painted = Painted(calls=ports.calls)
    embeddings = []
    with torch.no_grad():
        with open_backend("text_encoder") as backend:
            ports.open["text_encoder"] = backend
            for g, group in enumerate(groups):
                ports.where = (f"prompt {g + 1}", (g, 0))
                prompts = [plan.prompts[i] for i in group]
                embeddings.append(pipeline.encode_prompt(prompts, torch.device("cpu"), 1, True))
                tick("text")
        with open_backend("unet") as backend:
            ports.open["unet"] = backend
            for g, group in enumerate(groups):
                _denoise(pipeline, ports, plan, painted, g, group, embeddings[g], tick)
        with open_backend("vae_decoder") as backend:
            ports.open["vae_decoder"] = backend
            scale = pipeline.vae.config.scaling_factor
            for g, states in enumerate(painted.latents):
                ports.where = (f"prompt {g + 1}", (g, 0))
                painted.images.append(pipeline.vae.decode(states[-1] / scale, return_dict=False)[0])
                tick("decode")
    return painted


def _denoise(
    pipeline: Any, ports: _Ports, plan: Plan, painted: Painted, g: int, group: list[int],
    embeddings: tuple[torch.Tensor, torch.Tensor], tick: Callable[[str], None],
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

    pipeline(
        prompt_embeds=embeddings[0],
        negative_prompt_embeds=embeddings[1],
        num_inference_steps=plan.steps,
        guidance_scale=plan.guidance,
        height=plan.height,
        width=plan.width,
        generator=[
            torch.Generator().manual_seed(plan.seed + position) for position in _seeds(plan, g, group)
        ],
        output_type="latent",
        callback_on_step_end=after_step,
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
    parts |= {name: module for name, module in modules.items() if name != "vae_decoder"}
    pipeline = kind(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
