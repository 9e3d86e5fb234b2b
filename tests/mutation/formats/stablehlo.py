"""StableHLO: weights at offsets that a safetensors header names, beside a program that JAX serialised.

What a program gives is changed by lowering a function around it; what happens inside, by what the exporter
captures.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.mutation.formats.base import Edit, Format, part, register
from tests.mutation.formats.common import STORED, baked
from tests.mutation.formats.safetensors import Header, blobs, in_header

if TYPE_CHECKING:
    from tests.mutation.workshop import Workshop

ENTRY = "model.stablehlo"
STATIC = (1, 64, 64)
Outputs = dict[str, Any]


def around(change: Callable[[Outputs], Outputs]) -> Edit:
    """A program that gives something else of what the honest one computes."""

    def edit(shop: Workshop, root: Path) -> None:
        import jax

        path = part(root) / ENTRY
        honest = jax.export.deserialize(bytearray(path.read_bytes()))

        def changed(*arguments: Any, **inputs: Any) -> Outputs:
            return change(honest.call(*arguments, **inputs))

        arguments, inputs = jax.tree.unflatten(honest.in_tree, honest.in_avals)
        lowered = jax.export.export(jax.jit(changed), platforms=honest.platforms)(*arguments, **inputs)
        path.write_bytes(bytes(lowered.serialize()))

    return edit


def declaring(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Edit:
    """Other outputs in what the header says of them."""

    def changed(header: Header) -> Header:
        declared = json.loads(header["__metadata__"]["exporter"])
        declared["outputs"] = change(declared["outputs"])
        header["__metadata__"]["exporter"] = json.dumps(declared)
        return header

    return in_header(changed)


def both(*edits: Edit) -> Edit:
    def edit(shop: Workshop, root: Path) -> None:
        for each in edits:
            each(shop, root)

    return edit


def renamed(outputs: dict[str, Any]) -> dict[str, Any]:
    (first, *rest) = outputs
    return {"renamed": outputs[first], **{name: outputs[name] for name in rest}}


def extra(outputs: dict[str, Any]) -> dict[str, Any]:
    return {**outputs, "zz_extra": next(iter(outputs.values()))}


def without_last(outputs: dict[str, Any]) -> dict[str, Any]:
    return {name: outputs[name] for name in sorted(outputs)[:-1]}


def exchanged(outputs: dict[str, Any]) -> dict[str, Any]:
    first, second = outputs
    return {first: outputs[second], second: outputs[first]}


def cast(*dtypes: str) -> Callable[[Outputs], Outputs]:
    def change(outputs: Outputs) -> Outputs:
        first = min(outputs)
        value = outputs[first]
        for dtype in dtypes:
            value = value.astype(dtype)
        return outputs | {first: value}

    return change


SAYS_SIZES = "the program itself says which sizes it takes"
EDITS: dict[str, Edit] = STORED | {
    "output-renamed": both(around(renamed), declaring(renamed)),
    "output-extra": both(around(extra), declaring(extra)),
    "output-missing": both(around(without_last), declaring(without_last)),
    "output-dtype": around(cast("float16")),
    "output-float16": around(cast("float16", "float32")),
    "output-order": declaring(lambda outputs: dict(reversed(outputs.items()))),
    "output-exchanged": both(around(exchanged), declaring(exchanged)),
    "baked": baked(),
}

FORMS = [
    {"dtype": dtype} | more
    for dtype, more in itertools.product(
        ("float32", "bfloat16"), ({}, {"static": STATIC}, {"platforms": ["cpu"]})
    )
]

register(
    Format(
        "stablehlo",
        "StableHLO",
        "stablehlo",
        edits=EDITS,
        blobs=blobs,
        graph=(".stablehlo",),
        honest=FORMS,
        excluded=dict.fromkeys(("baked-declared", "baked-picture"), SAYS_SIZES),
    )
)
