"""Weight-only quantisation: what a user may choose, which weights are chosen, and the rounding itself.

Shared by the targets that store integers. Nothing here knows a file format.

- int8: one scale for each output channel (each row of an embedding), for every matrix, convolution and
  embedding.
- int4: one scale for each group of consecutive weights of a row, for the matrices of the denoiser that
  work on pixels and tokens; everything else that int8 would take is int8. So do optimum-intel and nncf by
  default: convolutions, embeddings, text encoders and autoencoders are where four bits show most, and the
  denoiser's matrices are most of the bytes of a model that is worth the trouble.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import model_validator

from exporter.architectures.base import DENOISERS
from exporter.errors import CheckpointError
from exporter.targets.base import Options

if TYPE_CHECKING:
    import torch

    from exporter.architectures.base import Component
    from exporter.checkpoints import StoredTensor

Kind = Literal["matrix", "convolution", "embedding"]
GROUP_SIZE = 64
GROUP_SIZES = (16, 32, 64, 128, 256)
CONDITIONS = ("time_", "add_", "class_")
"""Modules that turn a number or a label into one vector for the whole picture, by the first letters."""
CHUNK = 1 << 20
"""Weights rounded at a time."""
HALF = 64
"""The last code of int8 where activations are multiplied as integers: two products with a byte of activations
(255 · 64 · 2 = 32640) are the most that 16 bits hold, in which processors without VNNI add pairs of them."""


class WeightOptions(Options):
    """Options of a target that stores quantised weights.

    Attributes:
        weights: Integers to store weights as; None leaves them as `dtype` says. What is not quantised
            (biases, norms, tables) is stored as `dtype`, which stays the dtype of the arithmetic.
        symmetric: Codes are symmetric around zero, rather than with a zero point that uses the whole range;
            None is False.
        group_size: Int4 only: consecutive weights of a row that share a scale; None is `GROUP_SIZE`. A row
            that it does not divide takes the largest smaller one that does.
        ratio: Int4 only: share of the eligible matrices' weights that become int4, those that lose least
            first; the others are int8. None is 1.
    """

    weights: Literal["int8", "int4"] | None = None
    symmetric: bool | None = None
    group_size: int | None = None
    ratio: float | None = None

    @model_validator(mode="after")
    def _belongs_together(self) -> WeightOptions:
        if self.weights is None and self.symmetric is not None:
            raise ValueError("symmetric and asymmetric codes go with --weights int8 or int4")
        if self.weights != "int4":
            for name, value in (("group size", self.group_size), ("ratio", self.ratio)):
                if value is not None:
                    raise ValueError(f"a {name} goes with --weights int4")
        if self.group_size is not None and self.group_size not in GROUP_SIZES:
            known = ", ".join(map(str, GROUP_SIZES))
            raise ValueError(f"the group size {self.group_size} is none that runtimes take: {known}")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(f"the ratio {self.ratio} is not above 0 and at most 1")
        return self


@dataclass(frozen=True)
class How:
    """How one tensor is quantised.

    Attributes:
        bits: 8 or 4.
        symmetric: No zero point.
        group: Weights of a row that share a scale; 0 is the whole row.
        halved: Symmetric int8 in half of its range, ±`HALF`.
    """

    bits: int
    symmetric: bool
    group: int = 0
    halved: bool = False

    @property
    def label(self) -> str:
        """For the manifest: `int8_asym`, `int8_half`, `int4_sym_group64`."""
        if self.halved:
            return f"int{self.bits}_half"
        group = f"_group{self.group}" if self.group else ""
        return f"int{self.bits}_{'sym' if self.symmetric else 'asym'}{group}"


def choose(component: Component, candidates: Mapping[str, Kind], options: WeightOptions) -> dict[str, How]:
    """How to quantise each candidate. Reads weights only where a ratio asks which lose least.

    Args:
        candidates: Weight (by its stored name) → what it is used as.

    Returns:
        The same names.
    """
    by_row = How(8, bool(options.symmetric))
    chosen = dict.fromkeys(candidates, by_row)
    if options.weights != "int4" or component.name not in DENOISERS:
        return chosen
    stored = {tensor.name: tensor for tensor in component.weights.values()}
    four = {}
    for name, kind in candidates.items():
        group = fitting_group(stored[name].shape[-1], options.group_size or GROUP_SIZE)
        if kind == "matrix" and group and not _is_condition(name):
            four[name] = How(4, bool(options.symmetric), group)
    if options.ratio is not None and options.ratio < 1:
        four = _least_lossy(four, stored, options.ratio)
    return chosen | four


def fitting_group(columns: int, wanted: int) -> int:
    """The largest group size up to `wanted` that divides a row, or 0 where none does."""
    return next((size for size in reversed(GROUP_SIZES) if size <= wanted and columns % size == 0), 0)


def _is_condition(name: str) -> bool:
    return any(part.startswith(CONDITIONS) for part in name.split("."))


def _least_lossy(four: Mapping[str, How], stored: Mapping[str, StoredTensor], ratio: float) -> dict[str, How]:
    """Matrices in order of what four bits leave of them, until they make up `ratio` of all."""
    losses = {name: loss(stored[name], how) for name, how in four.items()}
    total = sum(stored[name].numel for name in four)
    taken, result = 0, {}
    for name in sorted(four, key=lambda name: (losses[name], name)):
        if taken + stored[name].numel <= ratio * total:
            taken += stored[name].numel
            result[name] = four[name]
    return result


def loss(tensor: StoredTensor, how: How) -> float:
    """Noise ÷ signal of a quantised weight, as energies."""
    noise = signal = 0.0
    for part in _rows(tensor):
        codes, scales, zeros = quantise(part, how)
        groups = part.reshape(codes.shape)
        restored = (codes.astype(np.float32) - zeros[..., None].astype(np.float32)) * scales[..., None]
        noise += float(np.square(restored - groups, dtype=np.float64).sum())
        signal += float(np.square(groups, dtype=np.float64).sum())
    return noise / signal if signal > 0 else 0.0


def quantised_parts(
    tensor: StoredTensor, how: How, scales_as: str = "float32"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`quantise` of a stored weight, some rows at a time: beside the result little is in memory.

    Raises:
        CheckpointError: The weight holds NaN or infinity, or values that a scale in that dtype cannot.
    """
    with np.errstate(all="ignore"):  # what is not finite is refused below
        found = [quantise(part, how, scales_as) for part in _rows(tensor)]
    codes, scales, zeros = (np.concatenate(parts) for parts in zip(*found, strict=True))
    if not np.isfinite(scales).all():
        raise CheckpointError(
            f"Weight {tensor.name!r} holds NaN or infinity, or values beyond {scales_as}; "
            "it cannot be quantised.",
            hint="Leave out --weights to convert it as it is.",
        )
    return codes, scales, zeros


def _rows(tensor: StoredTensor) -> Iterable[np.ndarray]:
    """A weight as float32 (rows, columns), rows being output channels, some at a time."""
    values: torch.Tensor = tensor.load()
    flat = values.reshape(values.shape[0], -1)
    count = max(1, CHUNK // max(1, flat.shape[1]))
    for start in range(0, flat.shape[0], count):
        yield flat[start : start + count].float().numpy()
    release = getattr(tensor, "release", None)
    if release is not None:
        release()


def quantise(
    values: np.ndarray, how: How, scales_as: str = "float32"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scales and zero points of rows of weights. Codes are the nearest to the weights under the
    scales as they are stored.

    Symmetric int8 spans ±127, halved ±64; symmetric int4 spans -8 … 7 with the sign of the scale chosen so
    that the entry of largest magnitude is -8, as nncf and ONNX Runtime do. With a zero point the range is
    that of the values, zero included, so that a zero stays exactly zero.

    Args:
        values: float32 (rows, columns); the group size divides the columns.
        scales_as: `float32` or `float16`.

    Returns:
        Codes (rows, groups, group): int8 for symmetric int8, else uint8 (symmetric int4 with an offset
        of 8); scales in `scales_as`, and zero points in the dtype of the codes, both (rows, groups).
    """
    rows, columns = values.shape
    groups = values.reshape(rows, columns // (how.group or columns), -1)
    top = 2**how.bits - 1
    if not how.symmetric:
        low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
        scales = _stored((high - low) / np.float32(top), scales_as)
        steps = scales.astype(np.float32)
        zeros = np.clip(np.rint(-low / steps), 0, top)
        codes = np.clip(np.rint(groups / steps[..., None]) + zeros[..., None], 0, top)
        return codes.astype(np.uint8), scales, zeros.astype(np.uint8)
    if how.bits == 8:
        last = HALF if how.halved else 127
        scales = _stored(np.abs(groups).max(-1) / np.float32(last), scales_as)
        codes = np.clip(np.rint(groups / scales[..., None].astype(np.float32)), -last, last)
        return codes.astype(np.int8), scales, np.zeros(scales.shape, np.int8)
    peak = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)[..., 0]
    scales = _stored(peak / np.float32(-8), scales_as)
    codes = np.clip(np.rint(groups / scales[..., None].astype(np.float32)), -8, 7) + 8
    return codes.astype(np.uint8), scales, np.full(scales.shape, 8, np.uint8)


def _stored(scales: np.ndarray, dtype: str) -> np.ndarray:
    """Scales in the dtype they are stored in. A group of zeros has codes of zero whatever its scale is, and
    takes 1. Where a number is so small that the dtype holds it badly, it is rounded away from zero: steps a
    little coarser, but no weight beyond the last code, and never a scale of zero."""
    found = scales.astype(dtype)
    limits = np.finfo(dtype)
    short = (np.abs(scales) < limits.smallest_normal) & (np.abs(found.astype(scales.dtype)) < np.abs(scales))
    found = np.where(short, np.nextafter(found, np.copysign(limits.max, scales).astype(dtype)), found)
    return np.where(scales == 0, np.ones((), dtype), found)


def packed(codes: np.ndarray) -> np.ndarray:
    """Two codes of four bits in a byte along the last axis, the first in the lower half."""
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], 1), codes.dtype)], axis=-1)
    return ((codes[..., 0::2] & 15) | ((codes[..., 1::2] & 15) << 4)).astype(np.uint8)


def unpacked(data: np.ndarray) -> np.ndarray:
    """The opposite of `packed`: uint8, twice as long along the last axis."""
    pairs = np.stack([data & 15, data >> 4], axis=-1)
    return pairs.reshape(*data.shape[:-1], -1)


def described(
    chosen: Mapping[str, How], options: WeightOptions, stored: Iterable[tuple[str, int]]
) -> dict[str, Any]:
    """For the manifest: what was quantised and how, and what the file holds.

    Args:
        chosen: Not empty.
        stored: Dtype and bytes of every tensor that stands for a weight, scales and zero points included.

    Returns:
        JSON values: `scheme`, `group_size`, `ratio`, `rest` (dtype of what is not quantised), `weights`
        (stored name → how), `counts` (how → weights) and `stored` (dtype → number and bytes of tensors).
    """
    tensors: dict[str, dict[str, int]] = {}
    for dtype, size in stored:
        row = tensors.setdefault(dtype, {"tensors": 0, "bytes": 0})
        row["tensors"] += 1
        row["bytes"] += size
    bits = min(how.bits for how in chosen.values())
    scheme = How(bits, bool(options.symmetric)).label
    details: dict[str, Any] = {"scheme": scheme, "rest": options.dtype}
    if bits == 4:
        details |= {"group_size": options.group_size or GROUP_SIZE, "ratio": options.ratio or 1.0}
    return details | {
        "weights": {name: how.label for name, how in sorted(chosen.items())},
        "counts": dict(sorted(Counter(how.label for how in chosen.values()).items())),
        "stored": dict(sorted(tensors.items())),
    }


def stored_dtype(details: Mapping[str, Any]) -> str | None:
    """The dtype in a component's record: `int4` as soon as one weight is; None where none is quantised."""
    return str(details["scheme"])[:4] if details else None
