"""safetensors: weights at offsets that the header names. There is no graph; what a client computes follows
from `config.json`, so that is where a wrong computation is planted.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.mutation.blob import Blob
from tests.mutation.formats.base import Edit, Format, part, register
from tests.mutation.formats.common import STORED

if TYPE_CHECKING:
    from tests.mutation.workshop import Workshop

DTYPES = {"F32": "float32", "F16": "float16"}
Header = dict[str, dict[str, Any]]


def _read(path: Path) -> tuple[Header, bytes]:
    """The header, and the bytes behind it."""
    data = path.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def blobs(folder: Path) -> list[Blob]:
    """Every float tensor of every shard."""
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        header, _ = _read(path)
        begin = 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]
        for name, tensor in header.items():
            if name != "__metadata__" and tensor["dtype"] in DTYPES:
                start = begin + tensor["data_offsets"][0]
                found.append(Blob(path, start, tuple(tensor["shape"]), DTYPES[tensor["dtype"]]))
    return found


def in_header(change: Callable[[Header], Header]) -> Edit:
    """Change the header of the component's file; the numbers stay as they are."""

    def edit(shop: Workshop, root: Path) -> None:
        (path,) = part(root).glob("*.safetensors")
        header, numbers = _read(path)
        text = json.dumps(change(header)).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(struct.pack("<Q", len(text)) + text + numbers)

    return edit


def in_config(**settings: Any) -> Edit:
    """Settings of the component's config; one that is a function is given the value that stands there.

    Raises:
        LookupError: No such setting: it would change nothing.
    """

    def edit(shop: Workshop, root: Path) -> None:
        path = part(root) / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        for name, value in settings.items():
            if name not in config:
                raise LookupError(f"the config has no {name!r}")
            config[name] = value(config[name]) if callable(value) else value
        path.write_text(json.dumps(config, indent=2), encoding="utf-8")

    return edit


def _exchange(header: Header) -> Header:
    """The numbers of two tensors of equal shape under each other's names: query and key."""
    query = next(name for name in header if name.endswith("attn1.to_q.weight"))
    key = query.replace("to_q", "to_k")
    return header | {query: header[key], key: header[query]}


def _drop(header: Header) -> Header:
    """One tensor is called otherwise, so that the library would make it up."""
    return {("lost" if name == "conv_out.weight" else name): tensor for name, tensor in header.items()}


def _shadow(shop: Workshop, root: Path) -> None:
    """Other weights beside the right ones, and an index that leads there. No listed byte changes."""
    (path,) = part(root).glob("*.safetensors")
    header, numbers = _read(path)
    text = json.dumps(header).encode()
    other = path.with_name("other.safetensors")
    other.write_bytes(struct.pack("<Q", len(text)) + text + bytes(reversed(numbers)))
    names = [name for name in header if name != "__metadata__"]
    index = {"metadata": {"total_size": len(numbers)}, "weight_map": dict.fromkeys(names, other.name)}
    path.with_name(f"{path.name}.index.json").write_text(json.dumps(index), encoding="utf-8")


def _flip(value: bool) -> bool:
    return not value


EDITS: dict[str, Edit] = STORED | {
    "flip-sin-to-cos": in_config(flip_sin_to_cos=_flip),
    "frequency-shift": in_config(freq_shift=lambda shift: 1 - shift),
    "eps-group": in_config(norm_eps=lambda eps: eps * 10),
    "eps-text": in_config(layer_norm_eps=lambda eps: eps / 10),
    "config-heads": in_config(attention_head_dim=lambda heads: heads * 2),
    "config-groups": in_config(norm_num_groups=lambda groups: groups // 2),
    "config-activation": in_config(hidden_act="gelu"),
    "config-eos": in_config(eos_token_id=lambda eos: eos - 1),
    "names-exchanged": in_header(_exchange),
    "name-lost": in_header(_drop),
    "weights-added": _shadow,
}
del EDITS["wrong-component"]

WEIGHTS_ONLY = "it stores weights and no graph"
LIBRARY = "names, order and dtypes are the library's, no file says them"
FORMS: list[dict[str, Any]] = [
    {"dtype": dtype} | more
    for dtype in ("stored", "float32", "float16", "bfloat16", "float8_e4m3fn")
    for more in ({}, {"max_shard_size": 500_000}, {"output_variant": "fp16"})
]

register(
    Format(
        "safetensors",
        "safetensors",
        "safetensors",
        edits=EDITS,
        blobs=blobs,
        captures=False,
        graph=(".json",),
        whole=True,
        honest=FORMS,
        excluded={
            **dict.fromkeys(("output-renamed", "output-extra", "output-missing", "output-dtype"), LIBRARY),
            **dict.fromkeys(("output-order", "output-exchanged", "output-float16"), LIBRARY),
            **dict.fromkeys(("baked", "baked-declared", "baked-picture"), "weights have no picture size"),
            **dict.fromkeys(("tanh-gelu", "bilinear", "padding"), WEIGHTS_ONLY),
            "sin-cos": "it is `flip_sin_to_cos` of the config",
            "wrong-component": "both halves of the VAE are one folder",
        },
    )
)
