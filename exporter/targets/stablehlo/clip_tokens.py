"""CLIP's tokens with `tokenizers` alone: `transformers` would import PyTorch wherever it is installed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import ArtifactError, BackendMissing

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What CLIP's vocabulary was made of: shortened forms, letters, single figures, other signs."""


class ClipTokens:
    """Texts to ids, cut and padded to the length the text encoder was trained with.

    As `CLIPTokenizerFast` has them; without ftfy, the slow one takes Chinese characters apart.

    Args:
        folder: `vocab.json`, `merges.txt` and `tokenizer_config.json`, as diffusers' checkpoints have them.

    Attributes:
        length: Ids of every text, 77 of most models.

    Raises:
        ArtifactError: A file is missing or is not what it should be.
        BackendMissing: `tokenizers` is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import tokenizers
            from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors
        except ModuleNotFoundError as error:
            raise BackendMissing(
                "Prompts need tokenizers, which is not installed.", hint="pip install tokenizers"
            ) from error
        try:
            vocabulary: dict[str, int] = _json(folder / "vocab.json")
            lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
            config = _json(folder / "tokenizer_config.json")
            named = {**_json(folder / "special_tokens_map.json"), **config}
            begin, end, unknown, pad = (
                _text(named.get(f"{name}_token", usual))
                for name, usual in (
                    ("bos", "<|startoftext|>"), ("eos", "<|endoftext|>"),
                    ("unk", "<|endoftext|>"), ("pad", "<|endoftext|>"),
                )
            )  # fmt: skip
            merges = [(left, right) for left, right in (line.split() for line in lines[1:] if line.strip())]
            model = models.BPE(
                vocab=vocabulary, merges=merges, unk_token=unknown,
                continuing_subword_prefix="", end_of_word_suffix="</w>",
            )  # fmt: skip
            self._tokenizer = tokenizers.Tokenizer(model)
            self._tokenizer.normalizer = normalizers.Sequence(
                [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
            )
            words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
            self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
            )
            self._tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{begin} $A {end}",
                special_tokens=[(begin, vocabulary[begin]), (end, vocabulary[end])],
            )
            self._tokenizer.add_special_tokens(list(dict.fromkeys((begin, end, unknown, pad))))
            for token, number in sorted(_added(folder, config).items(), key=lambda pair: pair[1]):
                if self._tokenizer.token_to_id(token) is None:  # of a textual inversion
                    self._tokenizer.add_tokens([AddedToken(token, normalized=False)])
                if self._tokenizer.token_to_id(token) != number:
                    raise ValueError(f"{token!r} is not number {number} of the vocabulary")
            self.length = int(config.get("model_max_length", 77))
            self._tokenizer.enable_truncation(self.length)
            self._tokenizer.enable_padding(
                length=self.length, pad_token=pad, pad_id=self._tokenizer.token_to_id(pad)
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{folder.name} of the artifact cannot be read: {error}.",
                hint="Copy the artifact again in full, or convert again.",
            ) from error

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Ids, int32 (texts, length)."""
        return np.asarray([each.ids for each in self._tokenizer.encode_batch(list(texts))], np.int32)


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _text(token: Any) -> str:
    """A token that a config has as text, or as an object with its content."""
    return str(token["content"] if isinstance(token, dict) else token)


def _added(folder: Path, config: dict[str, Any]) -> dict[str, int]:
    """Tokens that were added to the vocabulary, with their numbers."""
    listed = config.get("added_tokens_decoder") or {}
    found = {_text(token): int(number) for number, token in listed.items()}
    beside = folder / "added_tokens.json"
    return found | (_json(beside) if beside.is_file() else {})
