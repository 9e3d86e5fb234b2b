"""CLIP's byte-pair vocabulary, bundled so that a single-file checkpoint needs no network.

`data/clip_merges.txt.gz` holds the 48 894 merges of CLIP's `bpe_simple_vocab_16e6.txt.gz` (MIT, see
`data/clip_merges.LICENSE`) which CLIP itself uses. The vocabulary follows from them as in CLIP's own
`simple_tokenizer.py`: 256 bytes, the same at the end of a word, every merge, then start and end of text.
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path

VOCABULARY = 49408
"""Tokens of every CLIP text encoder that was trained with this vocabulary."""

START, END = "<|startoftext|>", "<|endoftext|>"
_MERGES = Path(__file__).parent / "data" / "clip_merges.txt.gz"


@cache
def merges() -> tuple[str, ...]:
    """`left right` for every merge, in order."""
    return tuple(gzip.decompress(_MERGES.read_bytes()).decode("utf-8").splitlines())


def byte_letters() -> list[str]:
    """The letter that stands for each byte, in the order of the vocabulary.

    Printable bytes of Latin-1 stand for themselves and come first; the others are moved to 256 and up.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]


def tokenizer_files(*, pad: str = END, length: int = 77) -> dict[str, bytes]:
    """The files of transformers' `CLIPTokenizer`.

    Args:
        pad: `!` for the OpenCLIP encoders (Stable Diffusion 2, SDXL's second), else the end of text.
        length: Tokens of the text encoder.
    """
    letters = byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += [merge.replace(" ", "") for merge in merges()]
    tokens += [START, END]
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    config = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True,
        "add_prefix_space": False, "errors": "replace", **special,
    }  # fmt: skip
    return {
        "vocab.json": json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False).encode(),
        "merges.txt": ("#version: 0.2\n" + "\n".join(merges()) + "\n").encode(),
        "special_tokens_map.json": (json.dumps(special, indent=2) + "\n").encode(),
        "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
    }
