"""What files are called: the packages, and the compiled models that the Swift package reads.

From apple/ml-stable-diffusion (commit e12202c): `torch2coreml.py` names both, `coreml_model._load_mlpackage`
and `_load_mlpackage_controlnet` open the packages, `ResourceURLs` in Swift the compiled models.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.targets.coreml.layout import is_controlled, kind_of

if TYPE_CHECKING:
    from exporter.architectures.base import Component
    from exporter.checkpoints import Checkpoint

RESOURCES = "Resources"
PREFIX, CONTROLNET_PREFIX = "Stable_Diffusion_version_", "ControlNet_"
CONTROLLED = "control-unet"
"""How the package of a UNet ends that takes what ControlNets give."""
CONTROLNETS = "controlnet"
"""Folder of the compiled ControlNets."""
ENDINGS = {"transformer": "mmdit"}
"""How a component's package ends where that is not the component's name."""
RESOURCE_NAMES = {
    "text_encoder": "TextEncoder",
    "text_encoder_2": "TextEncoder2",
    "text_encoder_3": "TextEncoderT5",
    "mmdit": "MultiModalDiffusionTransformer",
    "unet": "Unet",
    "unet_chunk1": "UnetChunk1",
    "unet_chunk2": "UnetChunk2",
    CONTROLLED: "ControlledUnet",
    f"{CONTROLLED}_chunk1": "ControlledUnetChunk1",
    f"{CONTROLLED}_chunk2": "ControlledUnetChunk2",
    "vae_decoder": "VAEDecoder",
    "vae_encoder": "VAEEncoder",
    "safety_checker": "SafetyChecker",
}
"""What a package's name ends in → the name of the compiled model in the folder that Swift reads."""


def model_id(checkpoint: Checkpoint) -> str:
    """What Apple calls the model version: the id on the Hub, or the name of a local folder."""
    return id_of(checkpoint.source)


def id_of(source: str) -> str:
    """The id on the Hub, or the name of a local folder."""
    if source.startswith("builtin:"):
        return source.removeprefix("builtin:")
    local = Path(source).expanduser()
    return local.resolve().name if local.exists() else source


def package_of(component: Component) -> str:
    """The file name of a component's package: what Apple's Python runner opens for `--model-version <model>`,
    and of a ControlNet for `--controlnet <its id>`."""
    if kind_of(component.name) == "controlnet":
        return f"{CONTROLNET_PREFIX}{controlnet_ids(component.checkpoint)[component.name]}.mlpackage"
    controlled = component.name == "unet" and is_controlled([spec.name for spec in component.inputs])
    ending = CONTROLLED if controlled else ENDINGS.get(component.name, component.name)
    return package_name(model_id(component.checkpoint), ending)


def package_name(model: str, ending: str) -> str:
    """`Stable_Diffusion_version_<model>_<ending>.mlpackage`, slashes as underscores."""
    return f"{PREFIX}{portable(model)}_{ending}.mlpackage"


def controlnet_ids(checkpoint: Checkpoint) -> dict[str, str]:
    """Folder of each ControlNet → its id as a part of a file name.

    One that was laid over the checkpoint has its own source's; one that came with it the model's and its
    folder's name. Where two would be compiled under one name, the later gets a number.
    """
    from exporter.checkpoints.overlays.controlnet import source_below

    folders = [name for name in checkpoint.component_classes if kind_of(name) == "controlnet"]
    result: dict[str, str] = {}
    taken: set[str] = set()
    for folder in sorted(folders, key=lambda name: (len(name), name)):
        source = source_below(checkpoint, folder)
        own = portable(id_of(source) if source else f"{model_id(checkpoint)}_{folder}")
        number, name = 1, own
        while title(name) in taken:
            number += 1
            name = f"{own}-{number}"
        taken.add(title(name))
        result[folder] = name
    return result


def compiled_name(package: str) -> str | None:
    """Name of the compiled model below `Resources/` that Swift looks for, without its suffix.

    Args:
        package: File name of the package. None where Swift knows no such.
    """
    stem = package.removesuffix(".mlpackage")
    if stem.startswith(CONTROLNET_PREFIX):
        return f"{CONTROLNETS}/{title(stem.removeprefix(CONTROLNET_PREFIX))}"
    endings = [ending for ending in RESOURCE_NAMES if stem.endswith(f"_{ending}")]
    return RESOURCE_NAMES[max(endings, key=len)] if endings else None


def title(name: str) -> str:
    """`lllyasviel_sd-controlnet-canny` → `LllyasvielSdControlnetCanny`: what `--controlnet` of Apple's Swift
    runner takes."""
    return "".join(word.title() for word in re.split("_|-", name))


def portable(model: str) -> str:
    """A model id as a part of a file name: `runwayml/x` → `runwayml_x`."""
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in model.strip("/"))
