"""Builds a tokenizer in the layout of CLIP's, with one token for every word of the prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77
END = "</w>"


def byte_alphabet() -> list[str]:
    """The 256 printable characters that stand for the bytes, in the order of CLIP's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(hidden))]


def split(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encode one ASCII word: merge the pair of lowest rank until none is left."""
    parts = [*word[:-1], word[-1] + END]
    while len(parts) > 1:
        pairs = list(pairwise(parts))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        at = pairs.index(best)
        parts[at : at + 2] = ["".join(best)]
    return parts


def merges_for(words: Sequence[str]) -> list[tuple[str, str]]:
    """One chain of merges per word, each made of what earlier chains leave of that word.

    Later merges have higher ranks, so they never come before the merges of an earlier word: a
    word that is one token stays one token.
    """
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        while len(parts := split(word, ranks)) > 1:
            ranks[(parts[0], parts[1])] = len(ranks)
    return list(ranks)


def vocabulary(words: Sequence[str]) -> dict[str, int]:
    """Token to id: bytes, bytes that end a word, merges, then BOS and EOS as the last two."""
    tokens = byte_alphabet()
    tokens += [token + END for token in tokens]
    tokens += dict.fromkeys("".join(pair) for pair in merges_for(words))
    tokens += [BOS, EOS]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def _special(content: str) -> dict[str, object]:
    return {
        "content": content,
        "lstrip": False,
        "normalized": True,
        "rstrip": False,
        "single_word": False,
    }


def write(folder: Path, words: Sequence[str]) -> int:
    """Write the four files of a CLIP tokenizer to `folder`; returns the size of the vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab = vocabulary(words)
    specials = {"bos_token": _special(BOS), "eos_token": _special(EOS), "unk_token": _special(EOS)}
    config = {
        "add_prefix_space": False,
        "bos_token": {"__type": "AddedToken", **_special(BOS)},
        "do_lower_case": True,
        "eos_token": {"__type": "AddedToken", **_special(EOS)},
        "errors": "replace",
        "model_max_length": MAX_LENGTH,
        "pad_token": EOS,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": {"__type": "AddedToken", **_special(EOS)},
    }

    def dump(name: str, value: object) -> None:
        text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
        (folder / name).write_text(text, encoding="utf-8")

    dump("vocab.json", vocab)
    dump("special_tokens_map.json", {**specials, "pad_token": EOS})
    dump("tokenizer_config.json", config)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges_for(words))]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(vocab)
