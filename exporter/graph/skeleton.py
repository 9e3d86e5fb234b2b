"""A `Graph` as bytes, and the cache of such bytes.

Nearly every checkpoint is a fine-tune of a known architecture: its graph has been made before. What is kept
holds no weight; which stored tensor goes where is worked out again for every checkpoint, and checked.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from typing import TYPE_CHECKING, Any

from exporter import cache
from exporter.architectures.base import Component, TensorSpec
from exporter.checkpoints import StoredTensor
from exporter.graph.weights import Recipe, Step

if TYPE_CHECKING:
    import onnx_ir as ir

    from exporter.graph.build import Graph

log = logging.getLogger(__name__)

MAGIC = b"exporter skeleton 1\n"
ABSENT = "absent"
"""External location that stands for the value of a weight."""


class Damaged(Exception):
    """The bytes are not what was kept."""


class Misfit(Exception):
    """The graph is whole, but is not that of this checkpoint."""


def load(key: str | None, component: Component) -> Graph | None:
    """The cached graph of a key with its weights found in the checkpoint, or None.

    A damaged entry is removed. One that does not fit the checkpoint stays: most likely the checkpoint is at
    fault, and building the graph anew says how.
    """
    data = cache.read(cache.SKELETONS, key) if key is not None and cache.enabled() else None
    if key is None or data is None:
        return None
    try:
        return decode(data, component)
    except Damaged as reason:
        log.info("the cached graph of %s is damaged (%s) and is made again", component.name, reason)
        cache.discard(cache.SKELETONS, key)
    except Misfit as reason:
        log.info("the cached graph of %s does not fit: %s", component.name, reason)
    return None


def save(key: str | None, graph: Graph, component: Component) -> None:
    """Keep a graph under a key."""
    if key is not None and cache.enabled():
        cache.write(cache.SKELETONS, key, encode(graph, component))


def encode(graph: Graph, component: Component) -> bytes:
    """The graph as bytes: a first line, sha256 of the rest, length of the notes, notes (JSON), ONNX."""
    import onnx_ir as ir

    names = {id(tensor): name for name, tensor in component.weights.items()}
    notes = {
        "weights": [
            [
                name,
                names[id(recipe.source)],
                list(recipe.source.shape),
                recipe.dtype,
                list(recipe.shape),
                [[step.kind, list(step.argument)] for step in recipe.steps],
            ]
            for name, recipe in graph.weights.items()
        ],
        "modules": graph.modules,
        "inputs": [[spec.name, spec.dtype, list(spec.dims)] for spec in graph.inputs],
        "outputs": [[spec.name, spec.dtype, list(spec.dims)] for spec in graph.outputs],
        "dtype": graph.dtype,
        "attention": graph.attention,
        "opset": graph.opset,
        "route": graph.route,
    }
    initializers = graph.model.graph.initializers
    try:
        for name, recipe in graph.weights.items():
            kind = initializers[name].dtype
            assert kind is not None
            initializers[name].const_value = ir.ExternalTensor(
                ABSENT, 0, 0, kind, shape=ir.Shape(recipe.shape), name=name
            )
        model = ir.serde.serialize_model(graph.model).SerializeToString(deterministic=True)
    finally:
        for name in graph.weights:
            initializers[name].const_value = None
    written = json.dumps(notes).encode()
    body = len(written).to_bytes(8, "little") + written + model
    return MAGIC + hashlib.sha256(body).digest() + body


def decode(data: bytes, component: Component) -> Graph:
    """The graph of `encode()`, its weights found in the component's checkpoint.

    Raises:
        Damaged: The bytes are not a whole graph, or its parts contradict each other.
        Misfit: The checkpoint lacks a weight, or holds it in another shape or kind.
    """
    notes, model = _opened(data)
    initializers = model.graph.initializers
    weights: dict[str, Recipe] = {}
    try:
        for name, source, stored_shape, dtype, shape, steps in notes["weights"]:
            stored = fitting(component, source, tuple(stored_shape), dtype)
            recipe = Recipe(stored, dtype, stored.shape)
            for kind, argument in steps:
                recipe = _stepped(recipe, Step(kind, tuple(argument)))
            value = initializers.get(name)
            if value is None or recipe.shape != tuple(shape) or not _absent(value, recipe):
                raise Damaged(f"the weight {name}")
            value.const_value = None
            weights[name] = recipe
        _check_constants(initializers, weights)
        from exporter.graph.build import Graph

        return Graph(
            model,
            weights,
            dict(notes["modules"]),
            _specs(notes["inputs"]),
            _specs(notes["outputs"]),
            notes["dtype"],
            notes["attention"],
            notes["opset"],
            notes["route"],
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise Damaged(f"its notes: {error}") from error


def fitting(component: Component, name: str, shape: tuple[int, ...], dtype: str) -> StoredTensor:
    """The stored tensor of a weight.

    Raises:
        Misfit: It is not in the checkpoint, has another shape, or is of another kind (integer, floating).
    """
    stored = component.weights.get(name)
    if stored is None:
        raise Misfit(f"{name} is not in the files")
    if stored.shape != shape:
        raise Misfit(f"{name} has shape {list(stored.shape)}, not {list(shape)}")
    if not same_kind(stored, dtype):
        raise Misfit(f"{name} is stored as {stored.dtype}, which is not made {dtype}")
    return stored


def same_kind(stored: StoredTensor, dtype: str) -> bool:
    """Whether a stored tensor may become a weight of a dtype: floating from floating, else not."""
    return (stored.dtype[:2] in {"F6", "F3", "F1", "BF", "F8"}) == dtype.startswith(("float", "bfloat"))


def _opened(data: bytes) -> tuple[dict[str, Any], ir.Model]:
    import onnx
    import onnx_ir as ir

    start = len(MAGIC) + 32
    body = data[start:]
    if data[: len(MAGIC)] != MAGIC or hashlib.sha256(body).digest() != data[len(MAGIC) : start]:
        raise Damaged("its hash")
    length = int.from_bytes(body[:8], "little")
    try:
        notes = json.loads(body[8 : 8 + length])
        model = ir.serde.deserialize_model(onnx.ModelProto.FromString(body[8 + length :]))
    except Exception as error:  # protobuf and onnx_ir raise several unrelated types
        raise Damaged(f"its content: {error}") from error
    return notes, model


def _stepped(recipe: Recipe, step: Step) -> Recipe:
    if step.kind == "permute":
        if sorted(step.argument) != list(range(len(recipe.shape))):
            raise Damaged("a permutation")
        return recipe.permuted(step.argument)
    if step.kind != "reshape" or math.prod(step.argument) != math.prod(recipe.shape):
        raise Damaged("a change of shape")
    return recipe.reshaped(step.argument)


def _absent(value: ir.Value, recipe: Recipe) -> bool:
    """Whether an initializer is the place of this weight: no data, its dtype and shape."""
    import onnx_ir as ir

    held = value.const_value
    return (
        isinstance(held, ir.ExternalTensor)
        and held.location == ABSENT
        and tuple(held.shape.numpy()) == recipe.shape
        and held.dtype == ir.DataType[_NAMES[recipe.dtype]]
    )


_NAMES = {
    "float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16", "int64": "INT64", "int32": "INT32",
}  # fmt: skip


def _check_constants(initializers: Any, weights: dict[str, Recipe]) -> None:
    """Everything that is no weight carries its numbers."""
    import onnx_ir as ir

    for name, value in initializers.items():
        held = value.const_value
        if name not in weights and (held is None or isinstance(held, ir.ExternalTensor)):
            raise Damaged(f"the constant {name}")


def _specs(rows: list[Any]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, dtype, tuple(dims)) for name, dtype, dims in rows)
