"""Dtypes that weights are kept in on disk, which weights of a model go into float8, and sizes as people
write them.

Neutral ground: a target writes by these rules, and parity computes by them what PyTorch makes of the
same weights.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SAFETENSORS_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8",
    "uint16": "U16", "uint32": "U32", "uint64": "U64", "bool": "BOOL",
}  # fmt: skip
"""torch's name of a dtype → the name in a safetensors header."""
TORCH_NAMES = {theirs: ours for ours, theirs in SAFETENSORS_NAMES.items()}
FLOAT8 = "float8_e4m3fn"
UNITS = {
    "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip

_NOT_FLOAT8 = re.compile(
    r"norm|(^|\.)(proj_in|proj_out)\.weight$"
    r"|(^|[._])(pos_embed|patch_embed|patch_embedding|condition_embedder|x_embedder|context_embedder"
    r"|token_embedding|position_embedding|embed_tokens|class_embedding|relative_attention_bias)"
    r"|(^|\.)(shared|wte|wpe)\.weight$"
)


def is_float(name: str) -> bool:
    """Whether a safetensors dtype name is of a floating type."""
    return name.startswith(("F", "BF"))


def goes_to_float8(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight is kept in float8 when a component is.

    Only matrices and kernels (`….weight` of two or more dims) are. Norms, biases and other vectors,
    embedding tables, patch embeddings and input and output projections keep their dtype: they are
    sensitive and small, and diffusers' layerwise casting skips nearly the same
    (`DEFAULT_SKIP_MODULES_PATTERN` and `_skip_layerwise_casting_patterns` of its models; it casts
    biases too, which we do not).
    """
    return len(shape) >= 2 and name.endswith(".weight") and not _NOT_FLOAT8.search(name)


def lost_in_cast(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Whether a finite value became infinite or NaN, or was cut off at the largest one.

    PyTorch saturates where it casts to float8, so for that the values are compared with its limit.
    """
    import torch

    source = before.to(torch.float32) if before.dtype.itemsize == 1 else before
    if after.dtype.itemsize == 1:
        return bool((torch.isfinite(source) & (source.abs() > torch.finfo(after.dtype).max)).any())
    finite = torch.isfinite(after)
    return not bool(finite.all()) and bool((torch.isfinite(source) & ~finite).any())


def parse_size(text: str) -> int:
    """Bytes of `5GB`, `200 MB`, `1.5GiB` or a plain number.

    Raises:
        ValueError: It is none of these.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = UNITS.get((found[2] or "B").upper()) if found else None
    if found is None or unit is None:
        raise ValueError(f"{text!r} is no size such as 5GB, 500MB or 2GiB")
    return int(float(found[1]) * unit)
