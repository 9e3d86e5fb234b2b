"""A checkpoint in one file, in its authors' own layout, as if it were a folder in diffusers layout.

Configs are made from the shapes and from what its family's authors published, the tokenizer is the
bundled one of CLIP, and every tensor is found under diffusers' name where it lies in the file. What it
is judged against goes another way: there diffusers' own conversion names the tensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from exporter.artifact import FileRecord, hash_file, sha256_of
from exporter.checkpoints import pickled
from exporter.checkpoints.checkpoint import Checkpoint, read_json
from exporter.checkpoints.clip_tokenizer import VOCABULARY, tokenizer_files
from exporter.checkpoints.derived import held
from exporter.checkpoints.original import families, text, unet, vae
from exporter.checkpoints.original.families import Family, Text
from exporter.checkpoints.safetensors_file import SafetensorsFile, StoredTensor
from exporter.checkpoints.small_files import as_json, folder_of
from exporter.errors import CheckpointError

Tensors = Mapping[str, StoredTensor]


@dataclass(frozen=True, kw_only=True)
class SingleFileCheckpoint(Checkpoint):
    """Attributes:
    path: The file.
    family: What it holds.
    assumed: What could not be read from the file, in sentences.
    extras: How it was opened (config, tokenizer, pickle), to open it so again.
    """

    path: Path
    family: Family
    tensors: Tensors = field(repr=False, compare=False)
    assumed: tuple[str, ...] = ()
    extras: Mapping[str, Any] = field(default_factory=dict)
    _theirs: dict[str, dict[str, StoredTensor]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def notes(self) -> tuple[str, ...]:
        return self.assumed

    @property
    def opened_with(self) -> Mapping[str, Any]:
        return self.extras

    @cached_property
    def files(self) -> list[FileRecord]:
        small = [hash_file(p, self.root) for p in sorted(self.root.rglob("*")) if p.is_file()]
        whole = FileRecord(
            path=self.path.name, sha256=sha256_of(self.path), bytes=self.path.stat().st_size
        )
        return [*small, whole]

    def weight_files(self, folder: str) -> list[Path]:
        return [self.path]

    def stored(self, folder: str) -> dict[str, StoredTensor]:
        if folder not in self._stores:
            self._stores[folder] = self._mapped(folder)
        return self._stores[folder]

    def reference_stored(self, folder: str) -> dict[str, StoredTensor]:
        """The tensors as diffusers' own single-file conversion names them.

        Raises:
            CheckpointError: It cannot convert this file.
        """
        if folder not in self._theirs:
            try:
                converted = self._converted(folder)
            except Exception as error:  # whatever it stumbles over, there is then no reference
                raise CheckpointError(
                    f"diffusers' own conversion of {self.source} failed on {folder!r} "
                    f"({type(error).__name__}), so there is nothing to judge against."
                ) from error
            self._theirs[folder] = {n: held(n, t, self.path) for n, t in converted.items()}
        return self._theirs[folder]

    def _mapped(self, folder: str) -> dict[str, StoredTensor]:
        if folder == "unet":
            return unet.weights(part(self.tensors, families.UNET), self.config("unet"))
        if folder == "vae":
            return vae.weights(part(self.tensors, families.VAE), self.config("vae"))
        for encoder in self.family.texts:
            if encoder.folder == folder:
                return text_weights(self.tensors, encoder)
        raise CheckpointError(f"{self.source} has no component {folder!r}.")

    def _converted(self, folder: str) -> dict[str, Any]:
        from diffusers.loaders import single_file_utils as theirs

        if folder in ("unet", "vae"):
            prefix = families.UNET if folder == "unet" else families.VAE
            given = {n: t.load() for n, t in self.tensors.items() if n.startswith(prefix)}
            convert = (
                theirs.convert_ldm_unet_checkpoint if folder == "unet" else theirs.convert_ldm_vae_checkpoint
            )
            return convert(given, config=self.config(folder))
        encoder = next(e for e in self.family.texts if e.folder == folder)
        given = {n: t.load() for n, t in self.tensors.items() if n.startswith(encoder.prefix)}
        if encoder.layout == "clip":
            return theirs.convert_ldm_clip_checkpoint(given)
        shell = SimpleNamespace(config=SimpleNamespace(hidden_size=self.config(folder)["hidden_size"]))
        return theirs.convert_open_clip_checkpoint(shell, given, prefix=encoder.prefix)


def part(tensors: Tensors, prefix: str) -> dict[str, StoredTensor]:
    """The tensors below a prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def text_weights(tensors: Tensors, encoder: Text) -> dict[str, StoredTensor]:
    own = part(tensors, encoder.prefix)
    found = text.clip_weights(own) if encoder.layout == "clip" else text.openclip_weights(own)
    return found if encoder.projected else {n: t for n, t in found.items() if n != "text_projection.weight"}


def read_tensors(path: Path, *, allow_pickle: bool) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Every tensor of a file by name, and the header's remarks.

    Raises:
        CheckpointError: Not a file of tensors, damaged, or a pickle that is not allowed.
    """
    if path.suffix.lower() in pickled.SUFFIXES:
        return pickled.read_state_dict(path, allow=allow_pickle), {}
    if path.suffix.lower() not in {".safetensors", ".sft"}:
        raise CheckpointError(
            f"{path.name} is no file this version reads as a model: it takes .safetensors, and .ckpt with "
            "--allow-pickle."
        )
    file = SafetensorsFile(path)
    return file.tensors, file.metadata


def open_single_file(
    source: str,
    path: Path,
    *,
    allow_pickle: bool = False,
    config: str | None = None,
    tokenizer: str | None = None,
) -> SingleFileCheckpoint:
    """Open a checkpoint in one file.

    Args:
        source: As the user typed it.
        config: Folder in diffusers layout whose configs, scheduler and tokenizer replace what would be
            inferred; it need not hold all of them.
        tokenizer: Folder with `vocab.json` and `merges.txt`, for vocabularies other than CLIP's.

    Raises:
        CheckpointError: See `families.detect`; or no tokenizer fits.
    """
    path = path.resolve()
    tensors, metadata = read_tensors(path, allow_pickle=allow_pickle)
    family = families.detect(tensors, source)
    given = Path(config).expanduser() if config is not None else None
    if given is not None and not given.is_dir():
        raise CheckpointError(f"--config {config} is no folder.")
    maker = _Configs(source, tensors, metadata, family, given, tokenizer)
    root = folder_of(maker.files())
    return SingleFileCheckpoint(
        source=source,
        root=root,
        index=read_json(root / "model_index.json"),
        path=path,
        family=family,
        tensors=tensors,
        assumed=tuple(maker.assumed),
        extras={"config": config, "tokenizer": tokenizer, "pickle": path.suffix in pickled.SUFFIXES},
    )


class _Configs:
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
            config = self._config(encoder.folder, lambda encoder=encoder: self._text(encoder))
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
        files["model_index.json"] = as_json(index)
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
                    f"The {encoder.folder} of {self.source} has {vocabulary} tokens; the bundled tokenizer of "
                    f"CLIP has {VOCABULARY}.",
                    hint="Name the folder that holds its vocab.json and merges.txt with --tokenizer DIR.",
                )
            return tokenizer_files(pad=encoder.pad, length=length)
        found = {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix in {".json", ".txt"}}
        try:
            tokens = len(json.loads(found["vocab.json"]))
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"The tokenizer folder {folder} has no usable vocab.json.") from error
        if tokens > vocabulary or "merges.txt" not in found:
            raise CheckpointError(
                f"The tokenizer in {folder} does not fit the {encoder.folder} of {self.source}: it has {tokens} "
                f"tokens, the encoder {vocabulary}."
                if "merges.txt" in found
                else f"The tokenizer folder {folder} has no merges.txt."
            )
        return found

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
