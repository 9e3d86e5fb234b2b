"""From a captured program to an ONNX graph."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from torch.fx import Node

from exporter.architectures.baked.deciding import is_decision
from exporter.architectures.base import Component
from exporter.graph.attention import Attention
from exporter.graph.capture import clean_path
from exporter.graph.direct import clips, layout, numeric, selection
from exporter.graph.direct.attention import scaled_dot_product
from exporter.graph.direct.emitter import DTYPES, Emitter, NotCovered
from exporter.graph.modules import SCOPES_META

if TYPE_CHECKING:
    from torch.export import ExportedProgram

SKIPPED = {"aten._assert_tensor_metadata.default", "aten._assert_scalar.default", "aten._assert_async.msg"}
FOLD_LIMIT = 1 << 22
"""Elements of the largest constant computed now rather than by the runtime."""

TABLE: dict[str, Callable[..., Any]] = {
    **numeric.TABLE,
    **layout.TABLE,
    **clips.TABLE,
    **selection.TABLE,
    "aten.scaled_dot_product_attention.default": scaled_dot_product,
}
SIZE_ARITHMETIC = {
    operator.neg: "Neg",
    operator.mul: "Mul",
    operator.add: "Add",
    operator.sub: "Sub",
    operator.floordiv: "Div",
}
"""Sizes are never negative, so ONNX's truncating division is floor division."""


def translate(
    component: Component, program: ExportedProgram, opset: int, attention: Attention
) -> tuple[ir.Model, dict[str, ir.Value]]:
    """Translate every node.

    Args:
        component: Tells which parameters lie in the checkpoint.
        program: Captured with attention as torch's own operator.
        opset: Version of the standard operator set.
        attention: Form of the attention operator.

    Returns:
        The model (parameters are initializers without a value) and, by module path in order of execution,
        the value that each module returns; see `exporter.graph.modules`.

    Raises:
        NotCovered: An operator, or a use of it, that is not translated here.
    """
    emitter = Emitter(opset, attention)
    inputs, weights = _placeholders(component, program, emitter)
    outputs: list[ir.Value] = []
    for node in program.graph.nodes:
        if node.op == "call_function":
            emitter.current = node
            _call(emitter, node)
        elif node.op == "output":
            emitter.current = None
            outputs = [emitter.value(emitter.env[each]) for each in node.args[0]]
        elif node.op != "placeholder":
            raise NotCovered(f"a node of kind {node.op}")
    for each in emitter.nodes:
        traced = each.meta.get("traced")
        if traced is not None:
            each.meta[SCOPES_META] = [path for path, _ in scopes_of(traced)]
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=emitter.nodes,
        initializers=[*weights, *emitter.constants.values()],
        opset_imports={"": opset, "com.microsoft": 1} if attention == "fused" else {"": opset},
        name="main_graph",
    )
    return ir.Model(graph, ir_version=10), _module_outputs(program, emitter)


def _placeholders(
    component: Component, program: ExportedProgram, emitter: Emitter
) -> tuple[list[ir.Value], list[ir.Value]]:
    signature = program.graph_signature
    constants = {**signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    inputs: list[ir.Value] = []
    weights: list[ir.Value] = []
    for node in program.graph.nodes:
        if node.op != "placeholder":
            continue
        parameter, buffer = signature.inputs_to_parameters.get(node.name), constants.get(node.name)
        name = parameter or buffer
        if name is not None and not node.users:
            continue  # the other half of a VAE
        fake = node.meta["val"]
        if buffer is not None and buffer not in component.weights:
            data = program.constants.get(buffer, program.state_dict.get(buffer))
            if not isinstance(data, torch.Tensor):
                raise NotCovered(f"the buffer {buffer}, which has no value")
            emitter.env[node] = data.detach()
            continue
        if not isinstance(fake, torch.Tensor):
            raise NotCovered(f"an input that is no tensor ({node.name})")
        value = ir.Value(name=name or node.name, type=ir.TensorType(DTYPES[fake.dtype]))
        emitter.env[node] = value
        emitter.note(value, fake)
        (inputs if name is None else weights).append(value)
    return inputs, weights


def _call(emitter: Emitter, node: Node) -> None:
    name = str(node.target)
    if name in SKIPPED:
        return
    fake = node.meta.get("val")
    result: Any
    if node.target is operator.getitem:
        result = emitter.env[node.args[0]][node.args[1]]  # type: ignore[index]
    elif isinstance(fake, torch.SymInt | int):
        result = _size(emitter, node)
    else:
        result = _fold(emitter, node)
        if result is None:
            translation = TABLE.get(name)
            if translation is None:
                raise NotCovered(f"the operator {name}")
            arguments = [emitter.env.get(a, a) if isinstance(a, Node) else a for a in node.args]
            keywords = {
                k: emitter.env.get(a, a) if isinstance(a, Node) else a for k, a in node.kwargs.items()
            }
            result = translation(emitter, node, *arguments, **keywords)
    emitter.env[node] = result
    if isinstance(fake, list | tuple) and isinstance(result, list):
        for value, each in zip(result, fake, strict=True):
            emitter.note(value, each)
    else:
        emitter.note(result, fake)


def _size(emitter: Emitter, node: Node) -> ir.Value:
    """A size computed from others, as an int64 vector of length 1."""
    if str(node.target) == "aten.sym_size.int":
        tensor, axis = node.args
        value = emitter.env[tensor]  # type: ignore[index]
        axis = int(axis) % emitter.fake(tensor).dim()  # type: ignore[arg-type]
        return emitter.emit("Shape", [value], {"start": axis, "end": axis + 1})
    kind = SIZE_ARITHMETIC.get(node.target)  # type: ignore[arg-type]
    if kind is None:
        raise NotCovered(f"the size arithmetic {node.target}")
    return emitter.emit(kind, [emitter.size(argument) for argument in node.args])


def _fold(emitter: Emitter, node: Node) -> torch.Tensor | None:
    """The node's value, when everything it depends on is known now."""
    fake = node.meta.get("val")
    if not isinstance(fake, torch.Tensor) or not all(isinstance(n, int) for n in fake.shape):
        return None
    if fake.numel() > FOLD_LIMIT or not isinstance(node.target, torch._ops.OpOverload):
        return None
    if any(not isinstance(emitter.env.get(each), torch.Tensor) for each in node.all_input_nodes):
        return None
    if node.target._schema.is_mutable and str(node.target) not in numeric.IN_PLACE:
        return None
    arguments = torch.fx.map_arg(node.args, lambda each: emitter.env[each].clone())
    keywords = torch.fx.map_arg(node.kwargs, lambda each: emitter.env[each].clone())
    result = node.target(*arguments, **keywords)
    if str(node.target) in numeric.IN_PLACE:
        emitter.env[node.args[0]] = result  # type: ignore[index]
    return result


def scopes_of(node: Node) -> list[tuple[str, str]]:
    """(path, call) of every module around a traced node, the outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [(clean_path(entry[0]), entry[0] + key.partition("@")[2]) for key, entry in stack.items()]
    return [(path, call) for path, call in paths if path]


def _module_outputs(program: ExportedProgram, emitter: Emitter) -> dict[str, ir.Value]:
    """As `modules.module_outputs`, from the traced program, where every value still has its own shape."""
    inside = {node: dict(scopes_of(node)) for node in program.graph.nodes}
    calls: dict[str, set[str]] = defaultdict(set)
    escaping: dict[str, list[Node]] = defaultdict(list)
    for node in program.graph.nodes:
        for path, call in inside[node].items():
            calls[path].add(call)
        fake = node.meta.get("val")
        if node.op != "call_function" or not isinstance(fake, torch.Tensor):
            continue
        for path in reversed(inside[node]):
            if not (fake.is_floating_point() or is_decision(path)):
                continue
            if fake.dim() and any(path not in inside[user] for user in node.users):
                escaping[path].append(node)
    result = {}
    for path, nodes in escaping.items():
        value = emitter.env.get(nodes[0])
        if len(nodes) == 1 and len(calls[path]) == 1 and isinstance(value, ir.Value):
            result[path] = value
    return result
