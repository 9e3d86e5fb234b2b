"""A component as the module that Apple's runners expect: their inputs, their shapes, around ours.

Names, shapes and dtypes: `layout.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from exporter.errors import ExporterError, UnsupportedError
from exporter.targets.coreml.attention import Attention, finite_masks, split_layers
from exporter.targets.coreml.layout import has_attention, is_controlled, kind_of

if TYPE_CHECKING:
    from exporter.architectures.base import Component
    from exporter.targets.coreml.layout import Layout

INSIDE = "component.inner."
"""Where the library's own module lies in an `AppleModule`."""


class AppleModule(nn.Module):
    """The component behind Apple's inputs; outputs in the component's order."""

    def __init__(self, component: nn.Module) -> None:
        super().__init__()
        self.component = component


class AppleTextEncoder(AppleModule):
    """`input_ids` is (1, tokens), floating: Core ML takes no int64, and Apple chose float32."""

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.component(input_ids=input_ids.to(torch.int32))


class AppleUNet(AppleModule):
    """`encoder_hidden_states` is (2, width, 1, tokens), `timestep` (2,)."""

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        text = encoder_hidden_states.squeeze(2).transpose(1, 2)
        return self.component(sample=sample, timestep=timestep, encoder_hidden_states=text)


class AppleXlUNet(AppleModule):
    """SDXL's: also `text_embeds` (2, width) and `time_ids` (2, numbers)."""

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor,
        time_ids: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        return self.component(
            sample=sample,
            timestep=timestep,
            encoder_hidden_states=encoder_hidden_states.squeeze(2).transpose(1, 2),
            text_embeds=text_embeds,
            time_ids=time_ids,
        )


class AppleControlledUNet(AppleModule):
    """A UNet's, and `additional_residual_0` …, what ControlNets give, summed.

    Args:
        names: The component's own names of these.
    """

    def __init__(self, component: nn.Module, names: Sequence[str]) -> None:
        super().__init__(component)
        self.names = tuple(names)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        *residuals: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        text = encoder_hidden_states.squeeze(2).transpose(1, 2)
        given = dict(zip(self.names, residuals, strict=True))
        return self.component(sample=sample, timestep=timestep, encoder_hidden_states=text, **given)


class AppleControlNet(AppleModule):
    """A UNet's, and `controlnet_cond` (2, 3, height, width). The scale is 1: it is applied outside."""

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        controlnet_cond: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        text = encoder_hidden_states.squeeze(2).transpose(1, 2)
        inner: Any = self.component.inner
        down, middle = inner(
            sample, timestep, text, controlnet_cond, conditioning_scale=1.0, return_dict=False
        )
        return (*down, middle)


class AppleMmdit(AppleModule):
    """Of Stable Diffusion 3: the text is (2, width, 1, tokens), its pooled form (2, width, 1, 1)."""

    def forward(
        self,
        latent_image_embeddings: torch.Tensor,
        token_level_text_embeddings: torch.Tensor,
        pooled_text_embeddings: torch.Tensor,
        timestep: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        return self.component(
            hidden_states=latent_image_embeddings,
            encoder_hidden_states=token_level_text_embeddings.squeeze(2).transpose(1, 2),
            pooled_projections=pooled_text_embeddings.squeeze(3).squeeze(2),
            timestep=timestep,
        )


class AppleT5(AppleModule):
    """Its `input_ids` as those of the other text encoders; the text leaves it as (1, width, 1, tokens)."""

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (text,) = self.component(input_ids=input_ids.to(torch.int32))
        return (text.transpose(1, 2).unsqueeze(2),)


class AppleVae(AppleModule):
    """One tensor in (`z` or `x`), one out."""

    def forward(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.component(tensor)


class AppleChecker(AppleModule):
    """Its tensors are Apple's already: `safety.as_apple` gives the component."""

    def forward(
        self, clip_input: torch.Tensor, images: torch.Tensor, adjustment: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        return self.component(clip_input=clip_input, images=images, adjustment=adjustment)


MODULES: dict[str, Callable[[nn.Module], AppleModule]] = {
    "text_encoder": AppleTextEncoder,
    "text_encoder_2": AppleTextEncoder,
    "text_encoder_3": AppleT5,
    "transformer": AppleMmdit,
    "unet": AppleUNet,
    "vae_decoder": AppleVae,
    "vae_encoder": AppleVae,
    "controlnet": AppleControlNet,
    "safety_checker": AppleChecker,
}


@dataclass(frozen=True)
class Captured:
    """A traced component.

    Attributes:
        program: `torch.export`'s, decomposed to core operators.
        channels_first: Paths of modules whose output lies as (batch, channels, 1, tokens).
    """

    program: Any
    channels_first: tuple[str, ...]


def load_module(component: Component) -> nn.Module:
    """The component with its weights, memory-mapped where they are stored in float32."""
    return component.reference_module(torch.float32)


def capture(component: Component, layout: Layout, attention: Attention) -> Captured:
    """Trace a component in Apple's form, in float32.

    Raises:
        UnsupportedError: There is no Apple form of it, or torch cannot trace it.
    """
    kind = MODULES.get(kind_of(component.name))
    names = [spec.name for spec in component.inputs[3:]]
    if kind is AppleUNet and names:
        kind = partial(AppleControlledUNet, names=names) if is_controlled(names) else AppleXlUNet
    if kind is None:
        raise UnsupportedError(f"Core ML export knows no component {component.name!r}.")
    module = load_module(component)
    channels_first: list[str] = []
    if attention != "original" and has_attention(component.name):
        channels_first = split_layers(module.get_submodule("inner"), attention)
    wrapped = kind(module).eval()
    examples = tuple(torch.zeros(f.shape, dtype=torch.float32) for f in layout.inputs)
    drop_unused(wrapped)
    with finite_masks(), quiet_torch(), torch.no_grad():
        try:
            program = torch.export.export(wrapped, examples, strict=False)
            # An empty table keeps linear, conv and norm whole; the default one bloats the graph.
            program = program.run_decompositions({})
        except ExporterError:
            raise
        except Exception as error:  # torch raises dozens of types here
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UnsupportedError(
                f"torch.export cannot trace the {component.name} ({component.class_name}): {first}"
            ) from error
    number_nodes(program)
    return Captured(program, tuple(channels_first))


def drop_unused(module: nn.Module) -> None:
    """Remove parameters without values: the half of a VAE that this component does not use."""
    for owner in module.modules():
        for name in [n for n, p in owner._parameters.items() if p is not None and p.is_meta]:
            del owner._parameters[name]


@dataclass(frozen=True)
class Leaving:
    """What a module returns.

    Attributes:
        handles: Of the traced node that computes it, and of those it is a mere copy of: whichever the
            converter keeps.
        shape: Of the value.
    """

    handles: tuple[int, ...]
    shape: tuple[int, ...]


def number_nodes(program: Any) -> None:
    """Give every traced node a `debug_handle`, which coremltools carries to the operations it makes of
    the node, and drop what would carry paths of this machine into them."""
    for handle, node in enumerate(program.graph.nodes):
        node.meta["debug_handle"] = handle
        node.meta.pop("stack_trace", None)


def module_values(captured: Captured) -> dict[str, Leaving]:
    """Module path → the value that leaves it, in order of execution.

    A module is listed when exactly one floating tensor of at least one dim is computed in it and used
    outside, and it runs once.
    """
    nodes = [node for node in captured.program.graph.nodes if node.op == "call_function"]
    inside = {node: paths_of(node) for node in nodes}
    calls: dict[str, set[str]] = {}
    leaving: dict[str, list[Any]] = {}
    for node in nodes:
        for path, call in inside[node].items():
            calls.setdefault(path, set()).add(call)
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dim() == 0:
            continue
        for path in reversed(list(inside[node])):  # the innermost first: it returns before its parents
            if any(path not in inside.get(user, {}) for user in node.users):
                leaving.setdefault(path, []).append(node)
    return {
        path: Leaving(
            tuple(n.meta["debug_handle"] for n in copies(found[0])), tuple(found[0].meta["val"].shape)
        )
        for path, found in leaving.items()
        if len(found) == 1 and len(calls[path]) == 1
    }


def copies(node: Any) -> list[Any]:
    """A node and those whose value it only passes on (a clone, a division by one)."""
    result = [node]
    while node.op == "call_function" and is_copy(node):
        node = node.args[0]
        result.append(node)
    return result


def is_copy(node: Any) -> bool:
    name = str(node.target)
    if name in ("aten.clone.default", "aten.alias.default", "aten.alias_copy.default"):
        return True
    return name in ("aten.div.Tensor", "aten.mul.Tensor") and node.args[1] in (1, 1.0)


def paths_of(node: Any) -> dict[str, str]:
    """Paths of the modules around a traced node, the outermost first → the call they belong to."""
    stack = node.meta.get("nn_module_stack") or {}
    result = {}
    for raw, _ in stack.values():
        path = raw.split("@")[0]
        if path.startswith(INSIDE):
            result[path.removeprefix(INSIDE)] = raw
    return result


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Silence what torch's exporter says about itself; errors still raise."""
    import logging
    import warnings

    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
