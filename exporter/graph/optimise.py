"""Optimises a graph whose weights are absent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporter.graph.capture import quiet
from exporter.graph.weights import Recipe

if TYPE_CHECKING:
    import onnx_ir as ir

SLOW_RULES = ("SlicesSplit",)
"""Rewrite rules that scan the whole graph for every node and find nothing in these models."""


def optimise(model: ir.Model) -> None:
    """Fold constants, apply the standard rewrite rules, merge equal nodes; in place.

    Initializers without a value are left alone: no pass asks for the data of a weight.
    """
    import onnx_ir.passes.common as common
    from onnxscript import rewriter
    from onnxscript.optimizer import _constant_folding as folding

    rules = [rule for rule in rewriter._DEFAULT_REWRITE_RULES if not str(rule.name).startswith(SLOW_RULES)]
    passes = [
        common.InlinePass(),
        *[
            folding.FoldConstantsPass(
                shape_inference=True, input_size_limit=1 << 13, output_size_limit=1 << 19
            ),
            rewriter.RewritePass(rules),
            common.RemoveUnusedNodesPass(),
        ]
        * 2,
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    ]
    with quiet():
        for step in passes:
            step(model)
        _merge_equal_constants(model)
        common.OutputFixPass()(model)
    tidy(model)


def tidy(model: ir.Model) -> None:
    """Merge equal nodes and drop what nothing uses; all that a direct translation needs."""
    import onnx_ir.passes.common as common

    with quiet():
        common.CommonSubexpressionEliminationPass()(model)
        common.RemoveUnusedNodesPass()(model)
        common.RemoveUnusedOpsetsPass()(model)


def _merge_equal_constants(model: ir.Model) -> None:
    """One initializer per distinct small constant. (The library's pass warns once per absent weight.)"""
    seen: dict[tuple, ir.Value] = {}
    initializers = model.graph.initializers
    for name, value in list(initializers.items()):
        if value.const_value is None:
            continue
        array = value.const_value.numpy()
        key = (value.const_value.dtype, array.shape, array.tobytes())
        first = seen.setdefault(key, value)
        if first is not value and not value.is_graph_output():
            value.replace_all_uses_with(first)
            initializers.pop(name)


def fold_layout(model: ir.Model, weights: dict[ir.Value, Recipe]) -> dict[str, Recipe]:
    """Move changes of layout of a weight (Transpose, Unsqueeze, Reshape) out of the graph into its recipe.

    A runtime would otherwise fold them when it opens the file, holding both forms in memory.

    Args:
        model: Changed in place.
        weights: Initializer → recipe, before folding.

    Returns:
        Initializer name → recipe, for the initializers still in use.
    """
    import onnx_ir as ir

    graph = model.graph
    forms: dict[tuple[str, tuple], ir.Value] = {}
    pending = list(weights.items())
    recipes = dict(weights)
    while pending:
        value, recipe = pending.pop(0)
        for use in list(value.uses()):
            folded = _folded(use.node, use.idx, recipe)
            if folded is None:
                continue
            key = (recipe.source.name, folded.steps)
            output = use.node.outputs[0]
            if output.is_graph_output():
                continue
            if key not in forms:
                assert value.dtype is not None
                forms[key] = ir.Value(
                    name=f"{value.name}.{len(forms)}",
                    type=ir.TensorType(value.dtype),
                    shape=ir.Shape(folded.shape),
                )
                graph.initializers[forms[key].name or ""] = forms[key]
                recipes[forms[key]] = folded
                pending.append((forms[key], folded))
            output.replace_all_uses_with(forms[key])
            graph.remove(use.node, safe=True)
    return name_weights(model, recipes)


def _folded(node: ir.Node, position: int, recipe: Recipe) -> Recipe | None:
    """The recipe of the node's output, when the node only changes the layout of this weight."""
    if position != 0 or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Transpose":
        perm = node.attributes.get("perm")
        axes = tuple(perm.as_ints()) if perm else tuple(reversed(range(len(recipe.shape))))
        return recipe.permuted(axes)
    if node.op_type in ("Unsqueeze", "Reshape"):
        argument = node.inputs[1]
        if argument is None or argument.const_value is None:
            return None
        numbers = [int(n) for n in argument.const_value.numpy().reshape(-1)]
        if node.op_type == "Reshape":
            if any(n <= 0 for n in numbers):
                return None
            return recipe.reshaped(tuple(numbers))
        rank = len(recipe.shape) + len(numbers)
        shape = list(recipe.shape)
        for axis in sorted(n % rank for n in numbers):
            shape.insert(axis, 1)
        return recipe.reshaped(tuple(shape))
    return None


def name_weights(model: ir.Model, recipes: dict[ir.Value, Recipe]) -> dict[str, Recipe]:
    """Name each initializer after its weight, numbered where one weight has several forms."""
    initializers = model.graph.initializers
    used: dict[str, list[tuple[ir.Value, Recipe]]] = {}
    for value, recipe in recipes.items():
        name = value.name or ""
        if name in initializers:
            initializers.pop(name)
        if value.uses() or value.is_graph_output():
            used.setdefault(recipe.source.name, []).append((value, recipe))
    for name, value in list(initializers.items()):
        if not value.uses() and not value.is_graph_output():
            initializers.pop(name)  # constants that folding left behind
    named = {}
    for source, forms in used.items():
        for number, (value, recipe) in enumerate(forms):
            value.name = source if number == 0 else f"{source}.form{number}"
            initializers[value.name] = value
            named[value.name] = recipe
    return named
