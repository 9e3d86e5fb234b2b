"""WHAT: one module per pipeline family. `components_of()` picks the family by the pipeline class."""

from __future__ import annotations

from importlib import import_module

from exporter.architectures.base import Component, Size, TensorSpec
from exporter.checkpoints import Checkpoint

_SD = "exporter.architectures.stable_diffusion"
_SDXL = "exporter.architectures.stable_diffusion_xl"
_SD3 = "exporter.architectures.stable_diffusion_3"
_FLUX = "exporter.architectures.flux"
_PIXART = "exporter.architectures.pixart"
_SANA = "exporter.architectures.sana"
_LTX = "exporter.architectures.ltx_video"
FAMILIES = {
    "CogView3PlusPipeline": "exporter.architectures.cogview3",
    "FluxFillPipeline": _FLUX,
    "FluxImg2ImgPipeline": _FLUX,
    "FluxInpaintPipeline": _FLUX,
    "FluxPipeline": _FLUX,
    "HunyuanDiTPipeline": "exporter.architectures.hunyuan_dit",
    "LTXImageToVideoPipeline": _LTX,
    "LTXPipeline": _LTX,
    "LatentConsistencyModelImg2ImgPipeline": _SD,
    "LatentConsistencyModelPipeline": _SD,
    "PixArtAlphaPipeline": _PIXART,
    "PixArtSigmaPipeline": _PIXART,
    "SanaPipeline": _SANA,
    "StableDiffusion3Img2ImgPipeline": _SD3,
    "StableDiffusion3InpaintPipeline": _SD3,
    "StableDiffusion3Pipeline": _SD3,
    "StableDiffusionAdapterPipeline": _SD,
    "StableDiffusionControlNetImg2ImgPipeline": _SD,
    "StableDiffusionControlNetInpaintPipeline": _SD,
    "StableDiffusionControlNetPipeline": _SD,
    "StableDiffusionImg2ImgPipeline": _SD,
    "StableDiffusionInpaintPipeline": _SD,
    "StableDiffusionPipeline": _SD,
    "StableDiffusionXLAdapterPipeline": _SDXL,
    "StableDiffusionXLControlNetImg2ImgPipeline": _SDXL,
    "StableDiffusionXLControlNetInpaintPipeline": _SDXL,
    "StableDiffusionXLControlNetPipeline": _SDXL,
    "StableDiffusionXLImg2ImgPipeline": _SDXL,
    "StableDiffusionXLInpaintPipeline": _SDXL,
    "StableDiffusionXLPipeline": _SDXL,
}
"""Pipeline class of model_index.json → the module that names its components."""

ENCODED = (
    "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds",
)  # fmt: skip
"""What `encode_prompt` of most pipelines returns, under the names by which they take it again."""

__all__ = [
    "FAMILIES",
    "Component",
    "Size",
    "TensorSpec",
    "components_of",
    "encoded_names",
    "is_generic",
    "notes_of",
]


def components_of(checkpoint: Checkpoint) -> list[Component]:
    """The exportable components of a checkpoint, in the order in which its pipeline uses them.

    A pipeline that no module is written for is observed (`exporter.architectures.generic`).

    Raises:
        CheckpointError: diffusers has no such pipeline, or a config is missing.
        UnsupportedError: The pipeline was observed, and cannot be converted so.
        UsageError: They cannot carry a technique that the checkpoint is to be exported with.
    """
    module = FAMILIES.get(checkpoint.pipeline_class, "exporter.architectures.generic")
    found: list[Component] = import_module(module).components(checkpoint)
    if checkpoint.techniques:
        from exporter.architectures.baked import bake

        return bake(found, checkpoint.techniques)
    return found


def is_generic(checkpoint: Checkpoint) -> bool:
    """Whether no module is written for the pipeline, so that it is known by observing it."""
    return checkpoint.pipeline_class not in FAMILIES


def notes_of(checkpoint: Checkpoint) -> list[str]:
    """What the manifest should say of how the components were found; nothing for a family of `FAMILIES`."""
    if not is_generic(checkpoint):
        return []
    from exporter.architectures.generic import note

    return note(checkpoint)


def encoded_names(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Under which names the pipeline takes what its `encode_prompt` returns, in that order.

    A family whose pipeline returns something else says so by an `ENCODED` of its own.
    """
    names: tuple[str, ...] = getattr(import_module(FAMILIES[checkpoint.pipeline_class]), "ENCODED", ENCODED)
    return names
