"""Weight-only quantisation of a graph whose weights are still on disk.

Nothing is read here but what a ratio asks for: the graph's operators are changed, and the recipes of its
weights are replaced by ones that quantise while the file is written, one tensor at a time.

- Convolutions and matrices in int8: DequantizeLinear with one scale for each output channel. Behind it
  com.microsoft FusedMatMul multiplies matrices as the checkpoint has them, (out, in). Behind a MatMul, ONNX
  Runtime would join the two and quantise the activations as well (an error of 0.5 % a layer) for every
  client that does not know the setting against it.
- Embeddings: the codes are looked up, and only what was found is dequantised.
- Matrices in int4: com.microsoft MatMulNBits, one scale for each group of a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from exporter.graph.weights import Recipe, Scratch, Step
from exporter.targets import quantisation
from exporter.targets.onnx.options import OnnxOptions
from exporter.targets.quantisation import How, Kind, packed

if TYPE_CHECKING:
    import onnx_ir as ir

    from exporter.architectures.base import Component
    from exporter.graph import Graph

TURNED = (Step("permute", (1, 0)),)
CONTRIB = "com.microsoft"
Name = Literal["codes", "scales", "zeros"]
CODES: Name = "codes"
SCALES: Name = "scales"
ZEROS: Name = "zeros"
BY_ROW = How(8, True)
FLOAT_COMPUTE = 1
"""MatMulNBits' `accuracy_level`: activations stay float32 (4 would quantise them to int8)."""


@dataclass(frozen=True)
class Part(Recipe):
    """One of the tensors that stand for a quantised weight.

    Attributes:
        part: Codes, scales, or zero points.
        how: Of the quantisation.
        scales_as: Dtype of the scales.
    """

    part: Name = CODES
    how: How = BY_ROW
    scales_as: str = "float32"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def verbatim(self) -> bool:
        return False

    @property
    def identity(self) -> tuple[object, ...]:
        return (*super().identity, self.part, self.how, self.scales_as)

    @property
    def stored_as(self) -> str:
        """For the manifest: the dtype, four-bit numbers by their own name."""
        return "uint4" if self.how.bits == 4 and self.part != SCALES else self.dtype

    def pieces(self, scratch: Scratch | None = None) -> Iterator[memoryview]:
        codes, scales, zeros = _quantised(self.source, self.how, self.scales_as)
        values = {CODES: codes, SCALES: scales, ZEROS: zeros}[self.part]
        if self.part == CODES and self.how.bits == 8:
            values = values.reshape(self.source.shape)
        elif self.part != SCALES and self.how.bits == 4:
            values = packed(values)
        yield memoryview(np.ascontiguousarray(values, dtype=self.dtype).reshape(-1).view(np.uint8).data)


# Codes, scales and zero points of a weight are written one after the other.
_quantised = lru_cache(maxsize=1)(quantisation.quantised_parts)


def forget() -> None:
    """Free the weight that was written last."""
    _quantised.cache_clear()


def compress(graph: Graph, component: Component, options: OnnxOptions) -> dict[str, Any]:
    """Quantise the weights of matrix products, convolutions and look-ups.

    Args:
        graph: Changed in place: operators, initializers and recipes.

    Returns:
        What was done, for the manifest; nothing where the component has no such weight.
    """
    forms: dict[str, list[str]] = {}
    for name, recipe in graph.weights.items():
        forms.setdefault(recipe.source.name, []).append(name)
    candidates = {}
    for name, recipe in graph.weights.items():
        kind = _kind(graph, name, recipe)
        if kind is not None and len(forms[recipe.source.name]) == 1:
            candidates[name] = kind
    if not candidates:
        return {}
    chosen = quantisation.choose(component, candidates, options)
    recipes: dict[str, Recipe] = {}
    for name, recipe in graph.weights.items():
        how = chosen.get(name)
        if how is None:
            recipes[name] = recipe
        elif candidates[name] == "embedding":
            recipes |= _look_up(graph, name, recipe, how)
        elif how.bits == 4:
            recipes |= _multiply_packed(graph, name, recipe, how)
        else:
            recipes |= _dequantise(graph, name, recipe, how)
    graph.weights.clear()
    graph.weights.update(recipes)
    graph.model.opset_imports.setdefault(CONTRIB, 1)
    stored = [(r.stored_as if isinstance(r, Part) else r.dtype, r.nbytes) for r in recipes.values()]
    return quantisation.described(chosen, options, stored)


def _kind(graph: Graph, name: str, recipe: Recipe) -> Kind | None:
    """What a weight is used as; None where it is no candidate."""
    uses = list(graph.model.graph.initializers[name].uses())
    used = {(use.node.domain, use.node.op_type, use.idx) for use in uses}
    if name != recipe.source.name or len(recipe.source.shape) < 2:
        return None
    if used == {("", "Conv", 1)} and not recipe.steps:
        return "convolution"
    if used == {("", "Gather", 0)} and not recipe.steps:
        axes = [use.node.attributes.get("axis") for use in uses]
        return "embedding" if all(axis is None or axis.as_int() == 0 for axis in axes) else None
    if used == {("", "MatMul", 1)} and recipe.steps == TURNED:
        return "matrix"
    if used == {("", "Gemm", 1)} and not recipe.steps:
        turned = [use.node.attributes.get("transB") for use in uses]
        return "matrix" if all(each is not None and each.as_int() == 1 for each in turned) else None
    return None


def _dequantise(graph: Graph, name: str, recipe: Recipe, how: How) -> dict[str, Recipe]:
    """A DequantizeLinear in front of every use of a weight."""
    import onnx_ir as ir

    parts, inputs = _by_row(graph, name, recipe, how, ())
    value = graph.model.graph.initializers.pop(name)
    node = ir.node("DequantizeLinear", inputs, {"axis": 0}, name=f"{name}/DequantizeLinear")
    node.outputs[0].name = f"{name}.dequantised"
    users = list(value.uses())
    for use in users:
        use.node.replace_input_with(use.idx, node.outputs[0])
        if recipe.steps == TURNED:
            use.node.domain, use.node.op_type = CONTRIB, "FusedMatMul"
            use.node.attributes["transB"] = ir.AttrInt64("transB", 1)
    graph.model.graph.insert_before(_earliest(graph, [use.node for use in users]), node)
    return dict(parts)


def _look_up(graph: Graph, name: str, recipe: Recipe, how: How) -> dict[str, Recipe]:
    """Codes, scale and zero point of the rows that are looked up: a table is never dequantised whole."""
    import onnx_ir as ir

    parts, inputs = _by_row(graph, name, recipe, how, (1,))
    value = graph.model.graph.initializers.pop(name)
    kind = ir.DataType[_DTYPES[recipe.dtype]]
    for number, use in enumerate(list(value.uses())):
        old = use.node
        nodes = [ir.node("Gather", [table, old.inputs[1]], {"axis": 0}) for table in inputs]
        found = [node.outputs[0] for node in nodes]
        codes = [ir.node("Cast", [each], {"to": kind}) for each in (found[0], *found[2:])]
        nodes += codes
        result = codes[0].outputs[0]
        if not how.symmetric:
            nodes.append(ir.node("Sub", [result, codes[1].outputs[0]]))
            result = nodes[-1].outputs[0]
        nodes.append(ir.node("Mul", [result, found[1]]))
        for step, node in enumerate(nodes):
            node.name = f"{name}/look-up{number}/{step}"
            node.outputs[0].name = f"{name}.look-up{number}.{step}"
            graph.model.graph.insert_before(old, node)
        _take_place(graph, old, nodes[-1])
    return dict(parts)


def _multiply_packed(graph: Graph, name: str, recipe: Recipe, how: How) -> dict[str, Recipe]:
    """MatMulNBits in place of every MatMul that uses a weight."""
    import onnx_ir as ir

    rows, columns = recipe.source.shape
    groups = columns // how.group
    shapes: dict[Name, tuple[int, ...]] = {CODES: (rows, groups, how.group // 2), SCALES: (rows, groups)}
    if not how.symmetric:
        shapes[ZEROS] = (rows, -(-groups // 2))
    parts = {
        f"{name}.{part}": Part(
            recipe.source, recipe.dtype if part == SCALES else "uint8", shape, (), part, how, recipe.dtype
        )
        for part, shape in shapes.items()
    }
    inputs = [_initializer(graph, key, part) for key, part in parts.items()]
    value = graph.model.graph.initializers.pop(name)
    settings = {
        "K": columns, "N": rows, "bits": 4, "block_size": how.group, "accuracy_level": FLOAT_COMPUTE,
    }  # fmt: skip
    for use in list(value.uses()):
        old = use.node
        node = ir.node("MatMulNBits", [old.inputs[0], *inputs], settings, domain=CONTRIB, name=old.name)
        graph.model.graph.insert_before(old, node)
        _take_place(graph, old, node)
    return dict(parts)


def _by_row(
    graph: Graph, name: str, recipe: Recipe, how: How, after: tuple[int, ...]
) -> tuple[dict[str, Part], list[ir.Value]]:
    """The parts of a weight with one scale for each row, and their initializers.

    Args:
        after: Dims that scales and zero points have behind the rows.
    """
    kind = "int8" if how.symmetric else "uint8"
    rows = (recipe.source.shape[0], *after)
    dtypes: dict[Name, tuple[str, tuple[int, ...]]] = {
        CODES: (kind, recipe.source.shape),
        SCALES: (recipe.dtype, rows),
    }
    if not how.symmetric:
        dtypes[ZEROS] = (kind, rows)
    parts = {
        f"{name}.{part}": Part(recipe.source, dtype, shape, (), part, how, recipe.dtype)
        for part, (dtype, shape) in dtypes.items()
    }
    return parts, [_initializer(graph, key, part) for key, part in parts.items()]


_DTYPES = {"float32": "FLOAT", "float16": "FLOAT16", "uint8": "UINT8", "int8": "INT8"}


def _initializer(graph: Graph, key: str, part: Part) -> ir.Value:
    import onnx_ir as ir

    value = ir.Value(
        name=key, shape=ir.Shape(part.shape), type=ir.TensorType(ir.DataType[_DTYPES[part.dtype]])
    )
    graph.model.graph.initializers[key] = value
    return value


def _take_place(graph: Graph, old: ir.Node, new: ir.Node) -> None:
    """The new node's output becomes the old one's, by name too; the old node goes."""
    before, after = old.outputs[0], new.outputs[0]
    after.name, after.type, after.shape = before.name, before.type, before.shape
    before.replace_all_uses_with(after, replace_graph_outputs=True)
    graph.model.graph.remove(old, safe=True)


def _earliest(graph: Graph, nodes: list[ir.Node]) -> ir.Node:
    wanted = set(nodes)
    return next(node for node in graph.model.graph if node in wanted)
