"""The small files that a single-file checkpoint stands for: configs, scheduler, tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from exporter.checkpoints.checkpoint import read_json
from exporter.checkpoints.clip_tokenizer import VOCABULARY, tokenizer_files
from exporter.checkpoints.original import families, text, unet, vae
from exporter.checkpoints.original.families import Family, Text
from exporter.checkpoints.safetensors_file import StoredTensor
from exporter.checkpoints.small_files import as_json
from exporter.errors import CheckpointError

Tensors = Mapping[str, StoredTensor]


def part(tensors: Tensors, prefix: str) -> dict[str, StoredTensor]:
    """The tensors below a prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def text_weights(tensors: Tensors, encoder: Text) -> dict[str, StoredTensor]:
    own = part(tensors, encoder.prefix)
    found = text.clip_weights(own) if encoder.layout == "clip" else text.openclip_weights(own)
    return found if encoder.projected else {n: t for n, t in found.items() if n != "text_projection.weight"}


class Configs:
    """Makes the small files of the diffusers folder that the file stands for."""

    def __init__(
        self, source: str, tensors: Tensors, metadata: Mapping[str, str], family: Family,
        given: Path | None, tokenizer: str | None,
    ) -> None:  # fmt: skip
        self.source, self.tensors, self.metadata = source, tensors, metadata
        self.family, self.given, self.tokenizer = family, given, tokenizer
        self.assumed: list[str] = []

    def files(self) -> dict[str, bytes]:
        sample = self._sample_size()
        scheduler = self._scheduler()
        files = {
            "scheduler/scheduler_config.json": as_json(scheduler),
            "unet/config.json": as_json(self._config("unet", lambda: self._unet(sample))),
            "vae/config.json": as_json(self._config("vae", lambda: self._vae(sample * 8))),
        }
        index: dict[str, Any] = {
            "_class_name": self.family.pipeline_class,
            "scheduler": ["diffusers", scheduler["_class_name"]],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        for encoder in self.family.texts:
            config = self._config(encoder.folder, partial(self._text, encoder))
            files[f"{encoder.folder}/config.json"] = as_json(config)
            for name, data in self._tokenizer(encoder, config).items():
                files[f"{encoder.tokenizer}/{name}"] = data
            kind = "CLIPTextModelWithProjection" if encoder.projected else "CLIPTextModel"
            index[encoder.folder] = ["transformers", kind]
            index[encoder.tokenizer] = ["transformers", "CLIPTokenizer"]
        if self.family.pipeline_class == "StableDiffusionPipeline":
            index |= {
                "safety_checker": [None, None],
                "feature_extractor": [None, None],
                "requires_safety_checker": False,
            }
        files["model_index.json"] = as_json(index | dict(self.family.settings))
        return files

    def _config(self, folder: str, infer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if self.given is not None and (self.given / folder / "config.json").is_file():
            return read_json(self.given / folder / "config.json")
        return infer()

    def _sample_size(self) -> int:
        """Latent cells. Newer files say the resolution in their header (Stability's ModelSpec)."""
        stated = str(self.metadata.get("modelspec.resolution", "")).lower().split("x")[0]
        if stated.isdigit() and 8 <= int(stated) <= 8192 and int(stated) % 8 == 0:
            return int(stated) // 8
        return self.family.sample

    def _unet(self, sample: int) -> dict[str, Any]:
        tensors = part(self.tensors, families.UNET)
        config = unet.infer(tensors, heads=self.family.heads, sample_size=sample)
        heads = config["attention_head_dim"]
        said = f"{heads} attention heads" if isinstance(heads, int) else "64 channels an attention head"
        self.assumed.append(
            f"unet: {said} and {config['norm_num_groups']} groups a normalisation, as published for "
            f"{self.family.name}; the file does not say"
        )
        return config

    def _vae(self, sample: int) -> dict[str, Any]:
        tensors = part(self.tensors, families.VAE)
        if not tensors:
            raise CheckpointError(f"{self.source} holds no autoencoder, so it is not a whole model.")
        return vae.infer(tensors, sample_size=sample, scaling=self.family.scaling)

    def _text(self, encoder: Text) -> dict[str, Any]:
        tensors = text_weights(self.tensors, encoder)
        config = text.infer(tensors, activation=encoder.activation, projected=encoder.projected)
        config["num_hidden_layers"] = max(1, config["num_hidden_layers"] - encoder.unused)
        return config

    def _scheduler(self) -> dict[str, Any]:
        if self.given is not None and (self.given / "scheduler" / "scheduler_config.json").is_file():
            return read_json(self.given / "scheduler" / "scheduler_config.json")
        config = dict(self.family.scheduler)
        stated = str(self.metadata.get("modelspec.prediction_type", "")).lower()
        if stated in ("v", "v_prediction") or "v_pred" in self.tensors:
            config["prediction_type"] = "v_prediction"
            if "ztsnr" in self.tensors:
                config["rescale_betas_zero_snr"] = True
        elif stated in ("epsilon", "eps"):
            config["prediction_type"] = "epsilon"
        else:
            self.assumed.append(
                f"scheduler: {config['_class_name']} with prediction type {config['prediction_type']}, as "
                f"published for {self.family.name}; the file does not say"
            )
        return config

    def _tokenizer(self, encoder: Text, config: Mapping[str, Any]) -> dict[str, bytes]:
        vocabulary, length = int(config["vocab_size"]), int(config["max_position_embeddings"])
        folder = self._tokenizer_folder(encoder)
        if folder is None:
            if vocabulary != VOCABULARY:
                raise CheckpointError(
                    f"The {encoder.folder} of {self.source} has {vocabulary} tokens; the bundled tokenizer "
                    f"of CLIP has {VOCABULARY}.",
                    hint="Name the folder that holds its vocab.json and merges.txt with --tokenizer DIR.",
                )
            return tokenizer_files(pad=encoder.pad, length=length)
        return clip_tokenizer(folder, vocabulary, encoder.folder, self.source)

    def _tokenizer_folder(self, encoder: Text) -> Path | None:
        if self.tokenizer is not None:
            folder = Path(self.tokenizer).expanduser()
            for candidate in (folder / encoder.tokenizer, folder):
                if (candidate / "vocab.json").is_file():
                    return candidate
            raise CheckpointError(
                f"--tokenizer {self.tokenizer} holds no vocab.json.",
                hint="Name the folder with vocab.json and merges.txt of the model's tokenizer.",
            )
        if self.given is not None and (self.given / encoder.tokenizer / "vocab.json").is_file():
            return self.given / encoder.tokenizer
        return None


def clip_tokenizer(folder: Path, vocabulary: int, encoder: str, source: str) -> dict[str, bytes]:
    """The files of a CLIP tokenizer in a folder.

    Args:
        vocabulary: Tokens of the text encoder.
        encoder / source: Its folder's name and where it comes from, for messages.

    Raises:
        CheckpointError: It has no vocabulary or no merges, or more tokens than the encoder.
    """
    found = {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix in {".json", ".txt"}}
    try:
        tokens = len(json.loads(found["vocab.json"]))
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"The tokenizer folder {folder} has no usable vocab.json.") from error
    if "merges.txt" not in found:
        raise CheckpointError(f"The tokenizer folder {folder} has no merges.txt.")
    if tokens > vocabulary:
        raise CheckpointError(
            f"The tokenizer in {folder} does not fit the {encoder} of {source}: it has "
            f"{tokens} tokens, the encoder {vocabulary}."
        )
    return found
