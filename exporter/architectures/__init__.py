"""WHAT: one module per pipeline family. `components_of()` picks the family by the pipeline class."""

from __future__ import annotations

from importlib import import_module

from exporter.architectures.base import Component, Size, TensorSpec
from exporter.checkpoints import Checkpoint
from exporter.errors import CheckpointError

_SD = "exporter.architectures.stable_diffusion"
_SDXL = "exporter.architectures.stable_diffusion_xl"
_SD3 = "exporter.architectures.stable_diffusion_3"
_FLUX = "exporter.architectures.flux"
FAMILIES = {
    "FluxFillPipeline": _FLUX,
    "FluxImg2ImgPipeline": _FLUX,
    "FluxInpaintPipeline": _FLUX,
    "FluxPipeline": _FLUX,
    "LatentConsistencyModelImg2ImgPipeline": _SD,
    "LatentConsistencyModelPipeline": _SD,
    "StableDiffusion3Img2ImgPipeline": _SD3,
    "StableDiffusion3InpaintPipeline": _SD3,
    "StableDiffusion3Pipeline": _SD3,
    "StableDiffusionImg2ImgPipeline": _SD,
    "StableDiffusionInpaintPipeline": _SD,
    "StableDiffusionPipeline": _SD,
    "StableDiffusionXLImg2ImgPipeline": _SDXL,
    "StableDiffusionXLInpaintPipeline": _SDXL,
    "StableDiffusionXLPipeline": _SDXL,
}
"""Pipeline class of model_index.json → the module that names its components."""

ENCODED = (
    "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds",
)  # fmt: skip
"""What `encode_prompt` of most pipelines returns, under the names by which they take it again."""

__all__ = ["FAMILIES", "Component", "Size", "TensorSpec", "components_of", "encoded_names"]


def components_of(checkpoint: Checkpoint) -> list[Component]:
    """The exportable components of a checkpoint, in the order in which its pipeline uses them.

    Raises:
        CheckpointError: No family module knows the pipeline class, or a config is missing.
        UsageError: They cannot carry a technique that the checkpoint is to be exported with.
    """
    module = FAMILIES.get(checkpoint.pipeline_class)
    if module is None:
        known = ", ".join(sorted(FAMILIES))
        raise CheckpointError(
            f"{checkpoint.source} is a {checkpoint.pipeline_class}, a family this version does not convert "
            f"(it converts: {known})."
        )
    found: list[Component] = import_module(module).components(checkpoint)
    if checkpoint.techniques:
        from exporter.architectures.baked import bake

        return bake(found, checkpoint.techniques)
    return found


def encoded_names(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Under which names the pipeline takes what its `encode_prompt` returns, in that order.

    A family whose pipeline returns something else says so by an `ENCODED` of its own.
    """
    names: tuple[str, ...] = getattr(import_module(FAMILIES[checkpoint.pipeline_class]), "ENCODED", ENCODED)
    return names
