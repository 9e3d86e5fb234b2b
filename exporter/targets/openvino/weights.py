"""Keeps the weights of linear layers as the checkpoint has them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from exporter.graph.weights import Step

if TYPE_CHECKING:
    import onnx_ir as ir

    from exporter.graph import Graph

TURNED = (Step("permute", (1, 0)),)


def keep_linear_weights(graph: Graph) -> int:
    """Replace each `MatMul` by a weight that would be transposed by a `FusedMatMul` that transposes.

    ONNX wants (in, out), the checkpoint and OpenVINO have (out, in). Given the former, OpenVINO turns
    every matrix back in memory; given the latter, it keeps mapping them from the file, under their
    own names.

    Args:
        graph: Changed in place.

    Returns:
        The number of weights kept.
    """
    model = graph.model
    kept = 0
    for name, recipe in graph.weights.items():
        value = model.graph.initializers[name]
        uses = list(value.uses())
        if recipe.steps != TURNED or not all(_is_product(use.node, use.idx) for use in uses):
            continue
        for use in uses:
            _transpose_second(use.node)
        straight = replace(recipe, steps=(), shape=recipe.source.shape)
        graph.weights[name] = straight
        value.shape = _shape(straight.shape)
        kept += 1
    if kept:
        model.opset_imports.setdefault("com.microsoft", 1)
    return kept


def _is_product(node: ir.Node, position: int) -> bool:
    return node.op_type == "MatMul" and node.domain in ("", "ai.onnx") and position == 1


def _transpose_second(node: ir.Node) -> None:
    import onnx_ir as ir

    node.domain, node.op_type = "com.microsoft", "FusedMatMul"
    node.attributes["transB"] = ir.AttrInt64("transB", 1)


def _shape(sizes: tuple[int, ...]) -> ir.Shape:
    import onnx_ir as ir

    return ir.Shape(sizes)
