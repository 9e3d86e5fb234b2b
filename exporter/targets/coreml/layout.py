"""What Apple's runners look for: tensor names, shapes and dtypes. Names of files: `names.py`.

From apple/ml-stable-diffusion (commit e12202c): `python_coreml_stable_diffusion/torch2coreml.py` names
the tensors, `coreml_model.py` and `pipeline.py` read them, and so does `swift/StableDiffusion/pipeline`.
A `Binding` says how one of Apple's tensors and one of the component's own (`architectures`) are the same
thing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.errors import UnsupportedError
from exporter.targets.coreml import safety, sd3

if TYPE_CHECKING:
    from torch import nn

    from exporter.architectures.base import Component, Size


@dataclass(frozen=True)
class Binding:
    """One tensor under its two names.

    Attributes:
        name: Apple's name, in the package.
        ours: The component's name.
        half: Whether Apple's runners feed it as float16.
        form: How the two shapes differ: `same`, `text` ((b, s, c) ↔ (b, c, 1, s)), `pooled`
            ((b, c) ↔ (b, c, 1, 1)) or `rows` (a scalar repeated for every row).
        xl: Of SDXL only.
        exact: A number to be taken as it is: rounding it asks another question.
    """

    name: str
    ours: str
    half: bool = False
    form: str = "same"
    xl: bool = False
    exact: bool = False


INPUTS: dict[str, tuple[Binding, ...]] = {
    "text_encoder": (Binding("input_ids", "input_ids"),),
    "text_encoder_2": (Binding("input_ids", "input_ids"),),
    "text_encoder_3": (Binding("input_ids", "input_ids"),),
    "transformer": (
        Binding("latent_image_embeddings", "hidden_states"),
        Binding("token_level_text_embeddings", "encoder_hidden_states", form="text"),
        Binding("pooled_text_embeddings", "pooled_projections", form="pooled"),
        Binding("timestep", "timestep"),
    ),
    "unet": (
        Binding("sample", "sample", half=True),
        Binding("timestep", "timestep", half=True, form="rows"),
        Binding("encoder_hidden_states", "encoder_hidden_states", half=True, form="text"),
        Binding("text_embeds", "text_embeds", half=True, xl=True),
        Binding("time_ids", "time_ids", half=True, xl=True, exact=True),
    ),
    "vae_decoder": (Binding("z", "latent_sample", half=True),),
    "vae_encoder": (Binding("x", "sample", half=True),),
    "controlnet": (
        Binding("sample", "sample", half=True),
        Binding("timestep", "timestep", half=True, form="rows"),
        Binding("encoder_hidden_states", "encoder_hidden_states", half=True, form="text"),
        Binding("controlnet_cond", "controlnet_cond", half=True),
    ),
    "safety_checker": tuple(
        Binding(name, name, half=True) for name in (safety.LOOK, safety.IMAGES, safety.ADJUSTMENT)
    ),
}
"""Of a component, by `kind_of` its name. What ControlNets hand to a UNet is in `input_bindings`."""
SCALE = "conditioning_scale"
"""How much a ControlNet counts: it multiplies what it gives. Apple's packages have no such input, so it is
applied outside them."""
RESIDUAL = "additional_residual_"
"""Apple's name of what a ControlNet gives the UNet, with a number; the last is that of the middle."""
HIDDEN = "hidden_embeds"
"""What SDXL takes of a text encoder: the state before the last layer. Its number is in the package."""
OUTPUTS_KEY = "exporter.outputs"
"""In the package: Apple's name of an output → the component's, where it depends on the model."""
OUTPUTS: dict[str, tuple[Binding, ...]] = {
    "text_encoder": (
        Binding("last_hidden_state", "last_hidden_state"),
        Binding("pooled_outputs", "pooler_output"),
    ),
    "text_encoder_2": (Binding(HIDDEN, HIDDEN), Binding("pooled_outputs", "text_embeds")),
    "text_encoder_3": (Binding("encoder_hidden_states", "last_hidden_state", form="text"),),
    "transformer": (Binding("denoiser_output", "out_hidden_states"),),
    "unet": (Binding("noise_pred", "out_sample"),),
    "vae_decoder": (Binding("image", "sample"),),
    "vae_encoder": (Binding("latent", "latent_parameters"),),
    "controlnet": (),
    "safety_checker": tuple(Binding(name, name) for name in (safety.FILTERED, safety.FLAG, safety.CONCEPTS)),
}
DESCRIPTIONS = {
    "input_ids": "Token ids of the prompt, padded to the model's length, as float32.",
    "last_hidden_state": "The text, one vector for every token: encoder_hidden_states of the UNet.",
    HIDDEN: "The text, one vector for every token, before the last layer.",
    "pooled_outputs": "The text as one vector: the state of the end-of-text token.",
    "sample": "Noisy latents of both rows of classifier-free guidance.",
    "timestep": "The scheduler's timestep, the same for every row.",
    "encoder_hidden_states": "Text of both rows (unconditional first) as (row, width, 1, token).",
    "text_embeds": "Text of both rows as one vector: pooled_outputs of the second text encoder.",
    "time_ids": "Of both rows: size of the original, crop, and target size or aesthetic score.",
    "noise_pred": "What the scheduler takes as the model's output for `sample`.",
    "z": "Latents, divided by the VAE's scaling factor.",
    "image": "The picture in [-1, 1].",
    "x": "The picture in [-1, 1].",
    "latent": "Mean and log-variance of the latents, before the scaling factor.",
    "controlnet_cond": "The picture to follow in [0, 1], for both rows.",
    "latent_image_embeddings": "Noisy latents of both rows of classifier-free guidance.",
    "token_level_text_embeddings": "Text of both rows (the prompt's first) as (row, width, 1, token): CLIP's "
    "77 tokens, zeros beside them, and T5's 77, or zeros for these.",
    "pooled_text_embeddings": "Text of both rows as one vector: pooled_outputs of both CLIP encoders.",
    safety.LOOK: "The picture as the feature extractor shows it: resized, cropped and normalised.",
    safety.IMAGES: "The picture in [0, 1], channels last; what is found is blackened in it.",
    safety.ADJUSTMENT: "Added to the scores of the special concepts; 0 as the model was published.",
    safety.FILTERED: "The picture, or black.",
    safety.FLAG: "1 where the picture is to be withheld, else 0.",
    safety.CONCEPTS: "How far the picture is above the threshold of each concept.",
    "denoiser_output": "What the scheduler takes as the model's output for the latents.",
}
OUTPUT_DESCRIPTIONS = {
    "encoder_hidden_states": "The text as (row, width, 1, token), padding included and read.",
}
"""Of outputs that are called like an input of another package."""


def description(name: str, *, given: bool = False) -> str:
    """What a tensor of Apple's is, in a sentence.

    Args:
        given: It is an output.
    """
    if given and name in OUTPUT_DESCRIPTIONS:
        return OUTPUT_DESCRIPTIONS[name]
    if name.startswith(RESIDUAL):
        return "What the ControlNet adds to a layer of the UNet; several ControlNets are summed."
    return DESCRIPTIONS[name]


@dataclass(frozen=True)
class Feature:
    """A tensor of the package: Apple's name, its shape and numpy dtype name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Layout:
    """Inputs and outputs of a package, in order."""

    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]


def layout_of(component: Component, size: Size, dtype: str) -> Layout:
    """What the package of a component must look like at a size.

    Args:
        dtype: Of the arithmetic. Apple's runners feed float16; a float32 package takes float32, because
            rounding its inputs would cost more than all of its arithmetic.

    Raises:
        UnsupportedError: Apple's runners know no such component.
    """
    inputs, outputs = bindings(component)
    shapes = {spec.name: spec.shape(size) for spec in (*component.inputs, *component.outputs)}
    rows = size.batch
    return Layout(
        tuple(
            Feature(
                b.name,
                apple_shape(b, shapes[b.ours], rows),
                "float16" if b.half and dtype == "float16" else "float32",
            )
            for b in inputs
        ),
        tuple(Feature(b.name, apple_shape(b, shapes[b.ours], rows), "float32") for b in outputs),
    )


def bindings(component: Component) -> tuple[tuple[Binding, ...], tuple[Binding, ...]]:
    """Inputs and outputs of a component (as `as_apple` gives it) under both names, in the component's order.

    Raises:
        UnsupportedError: Apple's runners know no such component, or have no name for one of its inputs.
    """
    check_known(component)
    kind = kind_of(component.name)
    given = [spec.name for spec in component.inputs if (kind, spec.name) != ("controlnet", SCALE)]
    known = {binding.ours: binding for binding in input_bindings(component.name, given)}
    odd = [name for name in given if name not in known]
    if odd:
        raise UnsupportedError(
            f"Apple's runners give a {kind} no {odd[0]!r}, which this model wants.",
            hint="Convert it --to onnx or openvino.",
        )
    inputs = tuple(known[name] for name in given)
    names = [spec.name for spec in component.outputs]
    if is_xl_text(component.name, names):
        hidden, pooled = component.outputs
        return inputs, (Binding(HIDDEN, hidden.name), Binding("pooled_outputs", pooled.name))
    outputs = {binding.ours: binding for binding in output_bindings(component.name, names)}
    return inputs, tuple(outputs[name] for name in names)


def kind_of(name: str) -> str:
    """What a component of that name is to Apple's runners: of ControlNets there may be several."""
    return "controlnet" if re.fullmatch(r"controlnet(_\d+)?", name) else name


def has_attention(name: str) -> bool:
    """Whether the form of attention is chosen for a component: UNets and their ControlNets."""
    return kind_of(name) in ("unet", "controlnet")


def input_bindings(component: str, names: Sequence[str]) -> tuple[Binding, ...]:
    """The inputs of a component of that name, among them what ControlNets give a UNet.

    Args:
        names: Of its inputs, Apple's or ours: as many residuals as these have are expected.
    """
    kind = kind_of(component)
    residuals = residual_bindings(names, "block_additional_residual") if kind == "unet" else ()
    return (*INPUTS[kind], *residuals)


def output_bindings(component: str, names: Sequence[str]) -> tuple[Binding, ...]:
    """The outputs, as `input_bindings` gives the inputs."""
    kind = kind_of(component)
    return residual_bindings(names, "block_res_sample") if kind == "controlnet" else OUTPUTS[kind]


def residual_bindings(names: Iterable[str], ours: str) -> tuple[Binding, ...]:
    """`additional_residual_0` … : those of the way down (a list of diffusers'), then that of the middle."""
    count = sum(name.startswith((RESIDUAL, f"down_{ours}", f"mid_{ours}")) for name in names)
    down = [Binding(f"{RESIDUAL}{n}", f"down_{ours}s_{n}", half=True) for n in range(count - 1)]
    return (*down, Binding(f"{RESIDUAL}{count - 1}", f"mid_{ours}", half=True)) if count else ()


def is_controlled(names: Iterable[str]) -> bool:
    """Whether a UNet with inputs of these names, Apple's or ours, takes what a ControlNet gives."""
    return bool(residual_bindings(names, "block_additional_residual"))


STRANGE_TEXTS = ("T5EncoderModel", "Gemma2Model")
"""Classes of text encoders that Apple's runners know no tokenizer and no place for."""


def check_known(component: Component) -> None:
    """That Apple's runners have a place for the component.

    Raises:
        UnsupportedError: They have none.
    """
    if component.clip > 1:
        raise UnsupportedError(
            "Core ML packages are made for Apple's runners, and those make no clips, as a "
            f"{component.checkpoint.pipeline_class} does.",
            hint="Convert it --to onnx, openvino, torchscript, pt2 or safetensors.",
        )
    if any(spec.name.startswith("down_intrablock") for spec in component.inputs):
        raise UnsupportedError(
            "Apple's runners know no T2I-Adapter, so a UNet that takes its features is not converted.",
            hint="Convert it --to onnx, openvino, torchscript, pt2 or safetensors.",
        )
    if any(spec.name == "image_embeds" for spec in component.inputs):
        raise UnsupportedError(
            "Apple's runners know no IP-Adapter, so a UNet that looks at a picture is not converted.",
            hint="Leave out --ip-adapter, or convert it --to onnx, openvino, torchscript or pt2.",
        )
    kind, inputs = kind_of(component.name), {spec.name: spec for spec in component.inputs}
    if "text_embeds" in inputs and (kind == "controlnet" or is_controlled(inputs)):
        raise UnsupportedError(
            "Apple's runners give a ControlNet neither text_embeds nor time_ids, and Swift refuses one for "
            f"Stable Diffusion XL, so the {component.name} of a {component.checkpoint.pipeline_class} is not "
            "converted to Core ML.",
            hint="Convert it --to onnx, openvino, torchscript, pt2 or safetensors, or the model without its "
            "ControlNet to Core ML.",
        )
    if kind == "controlnet" and inputs["controlnet_cond"].dims[1] != 3:
        raise UnsupportedError(
            "Apple's runners give a ControlNet pictures of 3 channels, the "
            f"{component.name} of this checkpoint reads {inputs['controlnet_cond'].dims[1]}.",
            hint="Convert it --to onnx, openvino, torchscript, pt2 or safetensors.",
        )
    if sd3.reads(component):
        sd3.check(component)
        return
    if kind not in INPUTS or kind in sd3.PARTS or component.class_name in STRANGE_TEXTS:
        raise UnsupportedError(
            f"Core ML packages are made for Apple's runners, and those know no {component.name} "
            f"({component.class_name}), which a {component.checkpoint.pipeline_class} has.",
            hint="Convert it --to onnx, openvino, torchscript, pt2 or safetensors.",
        )
    if component.class_name == "AutoencoderTiny":
        raise UnsupportedError(
            "Apple's runners draw latents from a mean and a log-variance and scale them as those of an "
            "AutoencoderKL; an AutoencoderTiny has neither, so they would paint something else.",
            hint="Convert it --to onnx or openvino, or keep the model's own autoencoder.",
        )


def is_xl_text(name: str, outputs: Sequence[str]) -> bool:
    """Whether these are the outputs of a text encoder of SDXL."""
    return name.startswith("text_encoder") and any(n.startswith(("hidden_states.", HIDDEN)) for n in outputs)


def as_apple(component: Component) -> Component:
    """The component with the outputs that Apple's packages have: of SDXL's text encoders the state before the
    last layer and the pooled text, of all others every output; with the tokens that Swift gives those of
    Stable Diffusion 3; and a safety checker that blackens by itself."""
    component = safety.as_apple(sd3.sized(component))
    if not is_xl_text(component.name, [spec.name for spec in component.outputs]):
        return component
    names = [spec.name for spec in component.outputs]
    states = [name for name in names if name.startswith("hidden_states.")]
    if len(states) < 2:
        return component
    wanted = (states[-2], "text_embeds" if "text_embeds" in names else "pooler_output")
    picked = [names.index(name) for name in wanted]
    adapt = component.adapt

    def only_these(inner: nn.Module) -> nn.Module:
        module = adapt(inner)
        forward = module.forward

        def some(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
            outputs = forward(*args, **kwargs)
            return tuple(outputs[i] for i in picked)

        module.forward = some
        return module

    return replace(component, outputs=tuple(component.outputs[i] for i in picked), adapt=only_these)


def needs_float32(component: Component) -> bool:
    """Whether a component's values leave float16's range: the autoencoder of SDXL, unless its config says
    that it was mended (`force_upcast`), and of Stable Diffusion 3 the transformer and T5. Apple's converter
    keeps autoencoder and transformer in float32 too."""
    if sd3.reads(component):
        return True
    is_xl = "text_encoder_2" in component.checkpoint.component_classes
    return is_xl and component.name.startswith("vae_") and bool(component.config.get("force_upcast", True))


def apple_shape(binding: Binding, shape: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """Apple's shape of a tensor of ours."""
    if binding.form == "text":
        batch, tokens, width = shape
        return (batch, width, 1, tokens)
    if binding.form == "pooled":
        return (*shape, 1, 1)
    return (rows,) if binding.form == "rows" else shape


def our_shape(binding: Binding, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Our shape of a tensor of Apple's; a shape that does not have the form stays as it is."""
    if binding.form == "text" and len(shape) == 4:
        return (shape[0], shape[3], shape[1])
    if binding.form == "pooled" and len(shape) == 4:
        return shape[:2]
    return () if binding.form == "rows" and len(shape) == 1 else shape


def to_apple(binding: Binding, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Our array in Apple's form (a view where it can be one)."""
    if binding.form == "text":
        return array.transpose(0, 2, 1)[:, :, None, :]
    if binding.form == "pooled":
        return array[:, :, None, None]
    return np.broadcast_to(array.reshape(()), shape) if binding.form == "rows" else array


def to_ours(binding: Binding | None, array: np.ndarray) -> np.ndarray:
    """An output of Apple's form as ours; as it is where it is unknown or its shape does not have the form."""
    if binding is not None and binding.form == "text" and array.ndim == 4 and array.shape[2] == 1:
        return np.ascontiguousarray(array[:, :, 0, :].transpose(0, 2, 1))
    return array
