"""A pipeline's modules without weights: their calls go to a backend, and are recorded."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from exporter.architectures._transformer import unread
from exporter.architectures.baked.driving import Driver
from exporter.architectures.base import DENOISERS, origin
from exporter.architectures.controlnet import is_controlnet, numbered
from exporter.architectures.ip_adapter import NAME as IMAGE_ENCODER
from exporter.architectures.ip_adapter import encoded, pictured
from exporter.architectures.t2i_adapter import NAME as ADAPTER
from exporter.errors import UnsupportedError
from exporter.parity.arithmetic import Tensors

if TYPE_CHECKING:
    from exporter.architectures.base import Component, TensorSpec

Backend = Callable[[Tensors], Tensors]
OpenBackend = Callable[[str], AbstractContextManager[Backend]]
"""Opens the backend of a component by its name; leaving the context frees it."""


@dataclass
class Call:
    """One recorded call of a component: float32 inputs by name, and where it happened."""

    inputs: Tensors
    label: str
    order: tuple[int, int]


METHODS = {"vae_decoder": "decode", "vae_encoder": "encode"}
"""Of components that are not their module's `forward`."""


class Ports:
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
            if (
                component.clip > 1 and component.published is not None
            ):  # what the pipeline reads of the module
                for key, value in component.published().items():
                    if key.endswith("_data"):
                        setattr(self.modules[name], key.removesuffix("_data"), torch.tensor(value))
            module = self.modules["vae_decoder" if name == "vae_encoder" else name]
            setattr(module, METHODS.get(name, "forward"), self._route(component, module))

    def _route(self, component: Component, module: Any) -> Callable[..., Any]:
        name = component.name
        if name in METHODS:  # a decorator hides the names of their parameters
            signature = inspect.signature(lambda self, x, temb=None, return_dict=True, generator=None: None)
        else:
            signature = inspect.signature(type(module).forward)
        renamed = (
            {"x": component.inputs[0].name, "temb": "timestep"} if name in METHODS or name == ADAPTER else {}
        )
        harmless = {"return_dict", "generator", "self", "output_hidden_states", "output_attentions"}
        harmless |= set(unread(getattr(module, "config", None) or {})) if name in DENOISERS else set()
        harmless |= {"guess_mode"} if is_controlnet(name) else set()  # never on here

        def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(None, *args, **kwargs).arguments
            bound |= bound.pop("added_cond_kwargs", None) or {}
            said = {k: v for k, v in bound.items() if not (v is None or (isinstance(v, dict) and not v))}
            given = {renamed.get(key, key): value for key, value in pictured(numbered(said), module).items()}
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
            if name == IMAGE_ENCODER:
                return encoded(named)
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
