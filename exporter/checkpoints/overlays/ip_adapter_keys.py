"""The names of an IP-Adapter's weights: as its authors store them, and as diffusers' UNet has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from exporter.checkpoints.derived import rows
from exporter.checkpoints.safetensors_file import StoredTensor
from exporter.errors import CheckpointError

Tensors = Mapping[str, StoredTensor]
IMAGE, ATTENTION = "image_proj.", "ip_adapter."
PROJECTION = "encoder_hid_proj.image_projection_layers.0."
TOKENS = {"plain": 4, "full": 257}
"""What a picture becomes, of the kinds that do not say it; `full` takes the encoder's own."""
HEAD = 64
"""Channels of a head of the resampler: no file says it, and the library assumes it too."""
DEPTH = 4
"""Layers of the resampler; the library knows no other number."""
_ATTENTION = re.compile(r"^(down_blocks|up_blocks|mid_block)(.*\.attn2\.)to_k\.weight$")
_LAYER = re.compile(r"^layers\.(\d+)\.(0|1)\.(.+)$")
_PLUS = {
    "norm1": "ln0", "norm2": "ln1", "to_q": "attn.to_q", "to_out": "attn.to_out.0",
    "0": "ff.0", "1": "ff.1.net.0.proj", "3": "ff.1.net.2",
}  # fmt: skip
_OTHERS = {
    "plain": {"proj": "image_embeds", "norm": "norm"},
    "full": {"proj.0": "ff.net.0.proj", "proj.2": "ff.net.2", "proj.3": "norm"},
}


def kind_of(tensors: Tensors, where: str) -> str:
    """`plain`, `plus` (a resampler) or `full`.

    Raises:
        CheckpointError: A kind that is not converted, or no IP-Adapter.
    """
    names = {name.removeprefix(IMAGE) for name in tensors if name.startswith(IMAGE)}
    face = "norm.weight" in names and "proj.0.weight" in names
    if (
        face
        or any(n.startswith("perceiver_resampler.") for n in names)
        or any("_lora." in n for n in tensors)
    ):
        raise CheckpointError(
            f"{where} is an IP-Adapter FaceID: it takes what a face recogniser makes of a face, and that is "
            "no part of diffusers, so this version does not convert it.",
            hint="Take an IP-Adapter that looks at a picture: plain, plus, plus-face or full-face.",
        )
    if any(name.startswith(ATTENTION) for name in tensors):
        if "proj.weight" in names:
            return "plain"
        if "proj.3.weight" in names:
            return "full"
        if {"latents", "proj_in.weight", "layers.0.0.to_q.weight"} <= names:
            return "plus"
    raise CheckpointError(
        f"{where} holds no IP-Adapter of Stable Diffusion: no image_proj.… and ip_adapter.….",
        hint="Name a file such as ip-adapter_sd15.safetensors; those of FLUX.1 and SD3 are other models.",
    )


def settings_of(tensors: Tensors, kind: str, where: str) -> dict[str, Any]:
    """What the UNet's config says of it (`architectures.ip_adapter.KEY`), and `width`: channels of the text.

    Raises:
        CheckpointError: A weight is missing, or has no shape that the library builds.
    """

    def shape(name: str, rank: int) -> tuple[int, ...]:
        found = tensors.get(IMAGE + name)
        if found is None or len(found.shape) != rank:
            raise CheckpointError(f"{where} is damaged: {IMAGE + name} is missing or has another shape.")
        return found.shape

    if kind == "plain":
        width, embed = shape("proj.weight", 2)
        if width % TOKENS[kind]:
            raise CheckpointError(f"{where}: {width} channels are not those of {TOKENS[kind]} tokens.")
        return {"kind": kind, "embed": embed, "tokens": TOKENS[kind], "width": width // TOKENS[kind]}
    if kind == "full":
        embed, width = shape("proj.0.weight", 2)[1], shape("proj.3.weight", 1)[0]
        return {"kind": kind, "embed": embed, "tokens": TOKENS[kind], "width": width}
    _, tokens, hidden = shape("latents", 3)
    layers = {n.split(".")[2] for n in tensors if n.startswith(f"{IMAGE}layers.")}
    inside = shape("layers.0.0.to_q.weight", 2)[0]
    if layers != {str(n) for n in range(DEPTH)} or inside % HEAD:
        raise CheckpointError(
            f"{where}: its resampler has {len(layers)} layers of {inside} channels; diffusers builds one of "
            f"{DEPTH} layers and heads of {HEAD} channels."
        )
    return {
        "kind": kind, "embed": shape("proj_in.weight", 2)[1], "tokens": tokens, "hidden": hidden,
        "heads": inside // HEAD, "width": shape("proj_out.weight", 2)[0],
    }  # fmt: skip


def attentions(unet: Tensors) -> list[str]:
    """The UNet's attentions to the text (`….attn2.`), in the order in which an IP-Adapter numbers them: down,
    up, middle."""
    found = []
    for name in unet:
        match = _ATTENTION.match(name)
        if match is not None:
            place = ("down_blocks", "up_blocks", "mid_block").index(match[1])
            found.append(((place, *map(int, re.findall(r"\d+", match[2].replace("attn2", "")))), name))
    return [name.removesuffix("to_k.weight") for _, name in sorted(found)]


def check_fits(tensors: Tensors, unet: Tensors, settings: Mapping[str, Any], where: str, model: str) -> None:
    """Every attention of the UNet has its two weights, of its own width, and there are no others.

    Raises:
        CheckpointError: The adapter was made for another model.
    """
    hint = "Take an IP-Adapter of the same model family (sd15 for Stable Diffusion 1, sdxl for SDXL)."
    places = attentions(unet)
    numbers = {name.removeprefix(ATTENTION).split(".")[0] for name in tensors if name.startswith(ATTENTION)}
    if len(numbers) != len(places):
        raise CheckpointError(
            f"{where} is for a UNet of {len(numbers)} attentions to the text, that of {model} has "
            f"{len(places)}: it was made for another model.",
            hint=hint,
        )
    text = unet[f"{places[0]}to_k.weight"].shape[1] if places else 0
    if settings["width"] != text:
        raise CheckpointError(
            f"{where} makes tokens of {settings['width']} channels, {model} takes text of {text}: "
            "it was made for another model.",
            hint=hint,
        )
    for number, place in enumerate(places):
        for part in ("k", "v"):
            name = f"{ATTENTION}{2 * number + 1}.to_{part}_ip.weight"
            wanted = unet[f"{place}to_{part}.weight"].shape
            found = tensors[name].shape if name in tensors else None
            if found != wanted:
                told = "is missing" if found is None else f"has shape {list(found)}"
                raise CheckpointError(
                    f"{where}: {name} {told}, the UNet of {model} wants {list(wanted)} there: it was made "
                    "for another model.",
                    hint=hint,
                )


def renamed(tensors: Tensors, unet: Tensors, kind: str) -> dict[str, StoredTensor]:
    """The adapter's weights by the names of diffusers' UNet."""
    found: dict[str, StoredTensor] = {}
    for number, place in enumerate(attentions(unet)):
        for part in ("k", "v"):
            name = f"{ATTENTION}{2 * number + 1}.to_{part}_ip.weight"
            found[f"{place}processor.to_{part}_ip.0.weight"] = tensors[name]
    for name, tensor in tensors.items():
        if name.startswith(IMAGE):
            inner = name.removeprefix(IMAGE)
            pairs = _resampled(inner, tensor) if kind == "plus" else _projected(inner, tensor, kind)
            found |= {PROJECTION + new: value for new, value in pairs}
    return found


def _projected(name: str, tensor: StoredTensor, kind: str) -> list[tuple[str, StoredTensor]]:
    layer, _, parameter = name.rpartition(".")
    return [(f"{_OTHERS[kind].get(layer, layer)}.{parameter}", tensor)]


def _resampled(name: str, tensor: StoredTensor) -> list[tuple[str, StoredTensor]]:
    match = _LAYER.match(name)
    if match is None:
        return [(name, tensor)]
    layer, _, inner = match.groups()
    part, _, parameter = inner.rpartition(".")
    if part == "to_kv" and tensor.shape:  # keys above values
        half = tensor.shape[0] // 2
        cut = {"to_k": rows(tensor, 0, half), "to_v": rows(tensor, half, tensor.shape[0])}
        return [(f"layers.{layer}.attn.{new}.{parameter}", value) for new, value in cut.items()]
    return [(f"layers.{layer}.{_PLUS.get(part, part)}.{parameter}", tensor)]
