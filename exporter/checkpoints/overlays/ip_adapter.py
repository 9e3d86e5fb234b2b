"""An IP-Adapter beside a checkpoint: the UNet attends to a picture too, which an encoder looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.artifact import OverlayRecord
from exporter.checkpoints.checkpoint import Checkpoint, read_json
from exporter.checkpoints.derived import held
from exporter.checkpoints.overlays.base import Overlaid, record_of
from exporter.checkpoints.overlays.ip_adapter_keys import (
    ATTENTION,
    IMAGE,
    PROJECTION,
    check_fits,
    kind_of,
    renamed,
    settings_of,
)  # fmt: skip
from exporter.checkpoints.overlays.places import Place, open_place
from exporter.checkpoints.pickled import SUFFIXES, read_pickle, refuse, tensors_of
from exporter.checkpoints.safetensors_file import StoredTensor
from exporter.checkpoints.safety import check_folder
from exporter.checkpoints.single_file import read_tensors
from exporter.checkpoints.small_files import as_json, folder_of, read_folder
from exporter.errors import CheckpointError, UsageError

ENCODER, EYES = "image_encoder", "feature_extractor"
KIND = "CLIPVisionModelWithProjection"
TAKERS = (
    *(
        f"{family}{net}{task}Pipeline"
        for family in ("StableDiffusion", "StableDiffusionXL")
        for net in ("", "ControlNet")
        for task in ("", "Img2Img", "Inpaint")
    ),
    "LatentConsistencyModelPipeline",
    "LatentConsistencyModelImg2ImgPipeline",
    "StableDiffusionXLAdapterPipeline",
)
"""Pipeline classes of diffusers that take one, of the families that are converted."""
KEY = "ip_adapter"
"""In the UNet's config; `architectures.ip_adapter` reads it."""


@dataclass(frozen=True, kw_only=True)
class WithIpAdapter(Overlaid):
    """Attributes:
    unet: What the adapter adds to the UNet, by diffusers' names.
    tensors: The same as its authors name them.
    encoder: The checkpoint whose folder `image_encoder` is the encoder's.
    """

    unet: Mapping[str, StoredTensor] = field(repr=False, compare=False)
    tensors: Mapping[str, StoredTensor] = field(repr=False, compare=False)
    encoder: Checkpoint = field(repr=False, compare=False)

    def stored(self, folder: str) -> dict[str, StoredTensor]:
        if folder == "unet":
            return self.base.stored(folder) | dict(self.unet)
        return self.encoder.stored(folder) if folder == ENCODER else self.base.stored(folder)

    def reference_stored(self, folder: str) -> dict[str, StoredTensor]:
        if folder == "unet":
            return self.base.reference_stored(folder) | self._theirs()
        return self.encoder.stored(folder) if folder == ENCODER else self.base.reference_stored(folder)

    def weight_files(self, folder: str) -> list[Path]:
        return (self.encoder if folder == ENCODER else self.base).weight_files(folder)

    def validate(self) -> None:
        self.base.validate()
        self.encoder.stored(ENCODER)

    def _theirs(self) -> dict[str, StoredTensor]:
        """The adapter's weights as diffusers' own loader names and cuts them."""
        import torch
        from diffusers import UNet2DConditionModel

        state: dict[str, Any] = {prefix.removesuffix("."): {} for prefix in (IMAGE, ATTENTION)}
        for name, tensor in self.tensors.items():
            prefix, _, inner = name.partition(".")
            if prefix in state:
                state[prefix][inner] = tensor.load()
        config = {name: value for name, value in self.config("unet").items() if name != KEY}
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(config)
        # The first initialises nothing that is thrown away; the second would go to the UNet's device, meta.
        modules = dict(unet._convert_ip_adapter_attn_to_diffusers([state], low_cpu_mem_usage=True))
        modules[PROJECTION.removesuffix(".")] = unet._convert_ip_adapter_image_proj_to_diffusers(
            state["image_proj"], low_cpu_mem_usage=False
        )
        path = next(iter(self.tensors.values())).file.path
        found: dict[str, StoredTensor] = {}
        for name, module in modules.items():
            values = module.state_dict() if isinstance(module, torch.nn.Module) else {}
            for inner, value in values.items():
                found[f"{name}.{inner}"] = held(f"{name}.{inner}", value.detach(), path)
        return found


def with_ip_adapter(
    checkpoint: Checkpoint, sources: Sequence[str], *, allow_pickle: bool = False
) -> WithIpAdapter:
    """Lay an IP-Adapter over a checkpoint.

    Args:
        sources: One: a file; a folder or a Hub id, with `:PATH` of the file in it where it holds several. The
            encoder (a folder `image_encoder`) lies beside the file, or elsewhere in the folder.

    Raises:
        CheckpointError: There is no such adapter or no encoder that goes with it; it is of a kind that is not
            converted, a pickle that is not allowed, or made for another model.
        UsageError: Several.
    """
    if len(sources) != 1 or any(record.kind == KEY for record in checkpoint.overlays):
        raise UsageError(
            f"A model takes one IP-Adapter in this version; given: {len(sources)}.",
            hint="Choose one of them.",
        )
    (source,) = sources
    own = checkpoint.pipeline_class
    if own not in TAKERS:
        raise CheckpointError(
            f"{checkpoint.source} is a {own}; an IP-Adapter is laid over Stable Diffusion, SDXL and their "
            "ControlNet and consistency pipelines only.",
            hint="Leave out --ip-adapter.",
        )
    place, name = open_place(source)
    if Path(name).suffix.lower() in SUFFIXES and not allow_pickle:
        raise refuse(Path(name))  # before it is fetched
    path = place.get([name]) / name
    tensors = _read(path, allow_pickle)
    kind = kind_of(tensors, path.name)
    settings = settings_of(tensors, kind, path.name)
    base = checkpoint.stored("unet")
    check_fits(tensors, base, settings, path.name, checkpoint.source)
    encoder = _encoder(place, name, settings, source, allow_pickle)
    config = encoder.config(ENCODER)
    index = {
        **checkpoint.index,
        ENCODER: ["transformers", KIND],
        EYES: ["transformers", "CLIPImageProcessor"],
    }
    kept = [folder for folder in checkpoint.component_classes if folder not in (ENCODER, EYES)]
    small = read_folder(checkpoint.root, kept)
    small["model_index.json"] = as_json(index)
    described = {key: value for key, value in settings.items() if key != "width"}
    small["unet/config.json"] = as_json({**checkpoint.config("unet"), KEY: described})
    small[f"{ENCODER}/config.json"] = as_json(config)
    small[f"{EYES}/preprocessor_config.json"] = as_json(processor(int(config.get("image_size", 224))))
    files = (path, encoder.root / ENCODER / "config.json", *encoder.weight_files(ENCODER))
    record = OverlayRecord(
        kind="ip_adapter", source=source, files=[record_of(each) for each in files], details={**settings}
    )
    return WithIpAdapter.over(
        checkpoint, (record,), root=folder_of(small), index=index,
        unet=renamed(tensors, base, kind), tensors=tensors, encoder=encoder,
    )  # fmt: skip


def processor(pixels: int) -> dict[str, Any]:
    """What the encoder is shown: the middle of the picture, as CLIP's processor cuts and scales it; the
    same as of diffusers' `load_ip_adapter`."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True, "size": {"shortest_edge": pixels}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": pixels, "width": pixels},
        "do_rescale": True, "rescale_factor": 1 / 255, "do_convert_rgb": True, "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip


def _read(path: Path, allow_pickle: bool) -> dict[str, StoredTensor]:
    if path.suffix.lower() not in SUFFIXES:
        return read_tensors(path, allow_pickle=allow_pickle)[0]
    value = read_pickle(path, allow=allow_pickle)
    found: dict[str, StoredTensor] = {}
    for part, tensors in value.items() if isinstance(value, Mapping) else ():
        for name, tensor in tensors_of(tensors):
            found[f"{part}.{name}"] = held(f"{part}.{name}", tensor, path)
    if not found:
        raise CheckpointError(f"{path.name} holds no tensors by name.")
    return found


def _encoder(
    place: Place, name: str, settings: Mapping[str, Any], source: str, allow_pickle: bool
) -> Checkpoint:
    """The nearest encoder that gives what the adapter takes."""
    beside = Path(name).parent
    end = f"{ENCODER}/config.json"
    configs = [each for each in place.names if each == end or each.endswith(f"/{end}")]
    configs.sort(key=lambda each: (Path(each).parent.parent != beside, len(Path(each).parts), each))
    takes = f"the {settings['embed']} channels that the IP-Adapter takes"
    hint = (
        f"Put its folder {ENCODER}/ (config.json, model.safetensors) beside {Path(name).name}; those of the "
        "Hub's h94/IP-Adapter lie in models/ and sdxl_models/."
    )
    if not configs:
        raise CheckpointError(
            f"{source} has no {ENCODER} ({KIND}) beside the IP-Adapter, which gives {takes}.", hint=hint
        )
    seen = []
    for each in configs:
        folder = Path(each).parent
        gives = _gives(read_json(place.get([each]) / each), settings["kind"])
        if gives == settings["embed"]:
            root = place.get_model(folder.as_posix(), allow_pickle)
            check_folder(source, root, [folder.as_posix()])
            encoder = Checkpoint(
                source=source, root=root / folder.parent, index={}, allow_pickle=allow_pickle
            )
            encoder.stored(ENCODER)
            return encoder
        seen.append(f"{folder.as_posix()} gives {gives}")
    raise CheckpointError(f"No {ENCODER} of {source} gives {takes}: {', '.join(seen)}.", hint=hint)


def _gives(config: Mapping[str, Any], kind: str) -> int:
    """Channels of what an adapter of that kind takes of it."""
    if config.get("model_type", "clip_vision_model") != "clip_vision_model":
        return 0
    return int(config.get("projection_dim", 512) if kind == "plain" else config.get("hidden_size", 768))
