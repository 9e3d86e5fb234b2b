"""What Apple's runners look for: file names, tensor names, shapes and dtypes.

From apple/ml-stable-diffusion (commit e12202c): `python_coreml_stable_diffusion/torch2coreml.py` names
the packages and tensors, `coreml_model.py` and `pipeline.py` read them, and so does
`swift/StableDiffusion/pipeline`. A `Binding` says how one of Apple's tensors and one of the component's
own (`architectures`) are the same thing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from exporter.errors import UnsupportedError

if TYPE_CHECKING:
    from exporter.architectures.base import Component, Size

RESOURCES = "Resources"
RESOURCE_NAMES = {
    "text_encoder": "TextEncoder",
    "text_encoder_2": "TextEncoder2",
    "unet": "Unet",
    "vae_decoder": "VAEDecoder",
    "vae_encoder": "VAEEncoder",
}
"""Name of the compiled model in the folder that the Swift package reads (`ResourceURLs`)."""


@dataclass(frozen=True)
class Binding:
    """One tensor under its two names.

    Attributes:
        name: Apple's name, in the package.
        ours: The component's name.
        half: Whether Apple's runners feed it as float16.
        form: How the two shapes differ: `same`, `text` ((b, s, c) ↔ (b, c, 1, s)) or `rows`
            (a scalar repeated for every row).
    """

    name: str
    ours: str
    half: bool = False
    form: str = "same"


INPUTS: dict[str, tuple[Binding, ...]] = {
    "text_encoder": (Binding("input_ids", "input_ids"),),
    "unet": (
        Binding("sample", "sample", half=True),
        Binding("timestep", "timestep", half=True, form="rows"),
        Binding("encoder_hidden_states", "encoder_hidden_states", half=True, form="text"),
    ),
    "vae_decoder": (Binding("z", "latent_sample", half=True),),
    "vae_encoder": (Binding("x", "sample", half=True),),
}
OUTPUTS: dict[str, tuple[Binding, ...]] = {
    "text_encoder": (
        Binding("last_hidden_state", "last_hidden_state"),
        Binding("pooled_outputs", "pooler_output"),
    ),
    "unet": (Binding("noise_pred", "out_sample"),),
    "vae_decoder": (Binding("image", "sample"),),
    "vae_encoder": (Binding("latent", "latent_parameters"),),
}
DESCRIPTIONS = {
    "input_ids": "Token ids of the prompt, padded to the model's length, as float32.",
    "last_hidden_state": "The text, one vector for every token: encoder_hidden_states of the UNet.",
    "pooled_outputs": "The text as one vector: the state of the end-of-text token.",
    "sample": "Noisy latents of both rows of classifier-free guidance.",
    "timestep": "The scheduler's timestep, the same for every row.",
    "encoder_hidden_states": "Text of both rows (unconditional first) as (row, width, 1, token).",
    "noise_pred": "What the scheduler takes as the model's output for `sample`.",
    "z": "Latents, divided by the VAE's scaling factor.",
    "image": "The picture in [-1, 1].",
    "x": "The picture in [-1, 1].",
    "latent": "Mean and log-variance of the latents, before the scaling factor.",
}


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
    if component.name not in INPUTS:
        raise UnsupportedError(f"Apple's runners know no component {component.name!r}.")
    shapes = {spec.name: spec.shape(size) for spec in component.inputs}
    rows = size.batch
    inputs = tuple(
        Feature(
            b.name,
            apple_shape(b, shapes[b.ours], rows),
            "float16" if b.half and dtype == "float16" else "float32",
        )
        for b in INPUTS[component.name]
    )
    outputs = tuple(
        Feature(b.name, spec.shape(size), "float32")
        for b, spec in zip(OUTPUTS[component.name], component.outputs, strict=True)
    )
    return Layout(inputs, outputs)


def apple_shape(binding: Binding, shape: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """Apple's shape of a tensor of ours."""
    if binding.form == "text":
        batch, tokens, width = shape
        return (batch, width, 1, tokens)
    return (rows,) if binding.form == "rows" else shape


def our_shape(binding: Binding, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Our shape of a tensor of Apple's; a shape that does not have the form stays as it is."""
    if binding.form == "text" and len(shape) == 4:
        return (shape[0], shape[3], shape[1])
    return () if binding.form == "rows" and len(shape) == 1 else shape


def to_apple(binding: Binding, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Our array in Apple's form (a view where it can be one)."""
    if binding.form == "text":
        return array.transpose(0, 2, 1)[:, :, None, :]
    return np.broadcast_to(array.reshape(()), shape) if binding.form == "rows" else array


def package_name(model: str, component: str) -> str:
    """`Stable_Diffusion_version_<model>_<component>.mlpackage`, slashes as underscores.

    What `coreml_model._load_mlpackage` opens for `--model-version <model>`.
    """
    tail = {"controlnet": f"ControlNet_{portable(model)}"}.get(component)
    return f"{tail or f'Stable_Diffusion_version_{portable(model)}_{component}'}.mlpackage"


def portable(model: str) -> str:
    """A model id as a part of a file name: `runwayml/x` → `runwayml_x`."""
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in model.strip("/"))
