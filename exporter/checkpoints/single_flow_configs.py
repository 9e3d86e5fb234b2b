"""The small files that a file of SD3 or FLUX.1 stands for, and what must come from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from exporter.checkpoints.checkpoint import Checkpoint, read_json
from exporter.checkpoints.clip_tokenizer import VOCABULARY, tokenizer_files
from exporter.checkpoints.derived import made
from exporter.checkpoints.original import t5, text, vae
from exporter.checkpoints.original.flow import Flow, TextPart
from exporter.checkpoints.safetensors_file import StoredTensor
from exporter.checkpoints.single_configs import clip_tokenizer, part
from exporter.checkpoints.small_files import as_json, read_folder
from exporter.errors import CheckpointError

Tensors = Mapping[str, StoredTensor]
UNTOLD = {"sample_size", "norm_num_groups", "scaling_factor", "shift_factor", "hidden_act", "projection_dim"}
"""Keys of inferred configs that no shape shows, or that count for nothing where they differ."""
UNTOLD_T5 = {"relative_attention_max_distance", "layer_norm_epsilon", "dropout_rate", "num_decoder_layers"}
TOLD_TEXT = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size", "max_position_embeddings",
)  # fmt: skip
UNSAID: dict[str, Any] = {"dual_attention_layers": [], "qk_norm": None}
"""What a config means that was written before diffusers had the key."""
MAX_TOKENIZER = 64_000_000


def text_weights(tensors: Tensors, encoder: TextPart) -> dict[str, StoredTensor]:
    """A text encoder's tensors under transformers' names; empty where the file has none."""
    own = part(tensors, encoder.prefix)
    if encoder.t5:
        return t5.weights(own)
    found = text.clip_weights(own)
    if encoder.identity or not encoder.kind.endswith("WithProjection"):
        found.pop("text_projection.weight", None)
    if found and encoder.identity:
        found["text_projection.weight"] = _identity(next(iter(found.values())), found)
    return found


def _identity(some: StoredTensor, tensors: Tensors) -> StoredTensor:
    """The matrix that changes nothing, as wide as the encoder: its file has the pooled text as it is."""
    table = tensors.get("text_model.embeddings.token_embedding.weight", some)
    width = table.shape[-1] if table.shape else 0

    def make() -> Any:
        import torch

        return torch.eye(width).to(table.torch_dtype)

    return made("text_projection.weight", table.dtype, (width, width), table, make)


class FlowConfigs:
    """Makes the small files, and says which parts come from the base (`borrowed`) and which from nowhere
    (`lacking`, folder → in words)."""

    def __init__(
        self, source: str, tensors: Tensors, flow: Flow, given: Path | None, tokenizer: str | None,
        base: Checkpoint | None,
    ) -> None:  # fmt: skip
        self.source, self.tensors, self.flow = source, tensors, flow
        self.given, self.base = given, base
        self.tokenizer = Path(tokenizer).expanduser() if tokenizer is not None else None
        self.shown = flow.infer(flow.transformer(tensors))
        self.assumed: list[str] = []
        self.borrowed: list[str] = []
        self.lacking: dict[str, str] = {}
        self._tokenizer_used = False

    def files(self) -> dict[str, bytes]:
        """By path below the folder; `borrowed`, `lacking` and `assumed` are known afterwards.

        Raises:
            CheckpointError: A part is incomplete, the base has another class of it, or a tokenizer does not
                fit.
        """
        scheduler = self._scheduler()
        files = {
            "scheduler/scheduler_config.json": as_json(scheduler),
            "transformer/config.json": as_json(self._config("transformer", self._transformer, self.shown)),
        }
        index: dict[str, Any] = {
            "_class_name": self.flow.pipeline_class,
            "scheduler": ["diffusers", scheduler["_class_name"]],
            "transformer": ["diffusers", self.flow.transformer_class],
        }
        for encoder in self.flow.texts:
            found, entries = self._text(encoder)
            files |= found
            index |= entries
        found, entries = self._vae()
        files["model_index.json"] = as_json(index | entries)
        if self.base is not None and self.borrowed:
            self.assumed.append(f"{', '.join(self.borrowed)}: from {self.base.source}; the file has none")
        if self.tokenizer is not None and not self._tokenizer_used:
            raise CheckpointError(
                f"--tokenizer {self.tokenizer} holds no tokenizer for a text encoder in {self.source}.",
                hint="Name a folder with vocab.json and merges.txt (CLIP) or tokenizer.json (T5), or one "
                "with such folders: tokenizer, tokenizer_2 …",
            )
        return files | found

    def _config(
        self, folder: str, infer: Callable[[], dict[str, Any]], shown: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What the user named; else the base's, if the shapes show the same model; else inferred."""
        if self.given is not None and (self.given / folder / "config.json").is_file():
            return read_json(self.given / folder / "config.json")
        if self.base is not None and folder in self.base.component_classes:
            config = self.base.config(folder)
            if agrees(shown, config):
                return config
        return infer()

    def _transformer(self) -> dict[str, Any]:
        assumed, words = self.flow.assume(self.shown)
        self.assumed.append(f"transformer: {words}, as published for {self.flow.name}; the file does not say")
        return {"_class_name": self.flow.transformer_class, **self.shown, **assumed}

    def _scheduler(self) -> dict[str, Any]:
        name = "scheduler/scheduler_config.json"
        if self.given is not None and (self.given / name).is_file():
            return read_json(self.given / name)
        base = self.base
        if base is not None and {"scheduler", "transformer"} <= set(base.component_classes):
            if agrees(self.shown, base.config("transformer")):
                return base.config("scheduler")
            self.assumed.append(
                f"scheduler: not that of {base.source}, whose transformer is of another kind or size"
            )
        config = dict(self.flow.scheduler)
        self.assumed.append(
            f"scheduler: {config['_class_name']} with shift {config['shift']}, as published for "
            f"{self.flow.name}; the file does not say"
        )
        return config

    def _vae(self) -> tuple[dict[str, bytes], dict[str, Any]]:
        tensors = part(self.tensors, self.flow.vae) if self.flow.vae else {}
        if not tensors:
            return self._borrow("vae", None, "autoencoder", None)
        latents = self.flow.latents
        scaling = {key: latents[key] for key in ("scaling_factor", "shift_factor")}
        inferred = vae.infer(tensors, sample_size=int(latents["sample_size"]), scaling=scaling)
        shown = {key: value for key, value in inferred.items() if key not in UNTOLD}

        def infer() -> dict[str, Any]:
            self.assumed.append(
                f"vae: scaling {latents['scaling_factor']} and {inferred['norm_num_groups']} groups a "
                f"normalisation, as published for {self.flow.name}; the file does not say"
            )
            return inferred

        config = self._config("vae", infer, shown)
        return {"vae/config.json": as_json(config)}, {"vae": ["diffusers", "AutoencoderKL"]}

    def _text(self, encoder: TextPart) -> tuple[dict[str, bytes], dict[str, Any]]:
        tensors = text_weights(self.tensors, encoder)
        if not tensors:
            return self._borrow(encoder.folder, encoder, encoder.words, encoder.kind)
        if encoder.t5:
            inferred = t5.infer(tensors)
            shown = {key: value for key, value in inferred.items() if key not in UNTOLD_T5}
        else:
            projected = encoder.kind.endswith("WithProjection")
            inferred = text.infer(tensors, activation=encoder.activation, projected=projected)
            shown = {key: inferred[key] for key in TOLD_TEXT}
        config = self._config(encoder.folder, partial(dict, inferred), shown)
        files = {f"{encoder.folder}/config.json": as_json(config)}
        index: dict[str, Any] = {encoder.folder: ["transformers", encoder.kind]}
        found, kind = self._tokenizer_of(encoder, config)
        if kind is None:
            self.lacking[encoder.tokenizer] = f"the tokenizer of {encoder.words}"
        index[encoder.tokenizer] = ["transformers", kind] if kind else [None, None]
        return files | {f"{encoder.tokenizer}/{name}": data for name, data in found.items()}, index

    def _borrow(
        self, folder: str, encoder: TextPart | None, words: str, kind: str | None
    ) -> tuple[dict[str, bytes], dict[str, Any]]:
        """A part that the file has not, with its tokenizer."""
        names = [folder, *([encoder.tokenizer] if encoder else [])]
        held = self.base.component_classes if self.base is not None else {}
        if self.base is None or any(name not in held for name in names):
            if encoder is None or not encoder.optional:
                self.lacking[folder] = words
            return {}, {name: [None, None] for name in names}
        if kind is not None and held[folder][1] != kind:
            raise CheckpointError(
                f"--base {self.base.source} has a {held[folder][1]} as its {folder}; {self.flow.name} needs "
                f"a {kind} there.",
                hint=f"Name a folder or Hub id of the same family, such as {self.flow.published}.",
            )
        self.borrowed.append(folder)
        files = read_folder(self.base.root, names)
        files.pop("model_index.json", None)
        return files, {name: list(held[name]) for name in names}

    def _tokenizer_of(
        self, encoder: TextPart, config: Mapping[str, Any]
    ) -> tuple[dict[str, bytes], str | None]:
        """Its files and class: the user's, the base's, or CLIP's bundled one."""
        vocabulary = int(config["vocab_size"])
        own = self.tokenizer
        places = [own / encoder.tokenizer, own] if own is not None else []
        if self.given is not None:
            places.append(self.given / encoder.tokenizer)
        if self.base is not None and encoder.tokenizer in self.base.component_classes:
            places.append(self.base.root / encoder.tokenizer)
        marks = ("tokenizer.json", "spiece.model") if encoder.t5 else ("vocab.json",)
        folder = next((p for p in places if any((p / mark).is_file() for mark in marks)), None)
        if folder is None:
            if encoder.t5:
                return {}, None
            if vocabulary != VOCABULARY:
                raise CheckpointError(
                    f"The {encoder.folder} of {self.source} has {vocabulary} tokens; the bundled tokenizer "
                    f"of CLIP has {VOCABULARY}.",
                    hint="Name the folder that holds its vocab.json and merges.txt with --tokenizer DIR.",
                )
            length = int(config.get("max_position_embeddings", 77))
            return tokenizer_files(pad=encoder.pad, length=length), "CLIPTokenizer"
        self._tokenizer_used = self._tokenizer_used or folder in places[: 2 if own is not None else 0]
        if not encoder.t5:
            return clip_tokenizer(folder, vocabulary, encoder.folder, self.source), "CLIPTokenizer"
        return t5_tokenizer(folder, vocabulary, encoder.folder, self.source), "T5TokenizerFast"


def agrees(shown: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a config says what the shapes show. A key that it does not have says nothing against it."""
    for key, value in shown.items():
        has = config.get(key, UNSAID.get(key, value))
        if key == "out_channels" and has is None:
            has = config.get("in_channels")
        if _plain(has) != _plain(value):
            return False
    return True


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def t5_tokenizer(folder: Path, vocabulary: int, encoder: str, source: str) -> dict[str, bytes]:
    """The files of a T5 tokenizer.

    Raises:
        CheckpointError: It is too large, unreadable, or has more tokens than the encoder.
    """
    paths = [p for p in sorted(folder.iterdir()) if p.is_file() and p.suffix in {".json", ".txt", ".model"}]
    if any(path.stat().st_size > MAX_TOKENIZER for path in paths):
        raise CheckpointError(
            f"The tokenizer folder {folder} holds files that are too large for a tokenizer."
        )
    found = {path.name: path.read_bytes() for path in paths}
    if "tokenizer.json" in found:
        try:
            tokens = len(json.loads(found["tokenizer.json"])["model"]["vocab"])
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"The tokenizer folder {folder} has no usable tokenizer.json.") from error
        if tokens > vocabulary:
            raise CheckpointError(
                f"The tokenizer in {folder} does not fit the {encoder} of {source}: it has {tokens} tokens, "
                f"the encoder {vocabulary}."
            )
    return found
