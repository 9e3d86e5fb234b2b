"""The outputs of modules, asked of the very program that is shipped: its marks made results of it.

JAX has no public way to give an exported program more results, so this reaches into two of its private
places. Only looking for a fault depends on it; running an artifact does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
from jax import export as jax_export
from jax.interpreters import mlir
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import func

from exporter.targets.stablehlo.lowering import dtype_of
from exporter.targets.stablehlo.marks import ATTRIBUTE, notes_of

if TYPE_CHECKING:
    from jax.export import Exported

MAIN = "main"


@dataclass(frozen=True)
class Mark:
    """A value that a module returns: its dtype, and its shape as JAX writes symbols."""

    path: str
    dtype: str
    shape: str


def marks(exported: Exported) -> list[Mark]:
    """Every module whose output the program can give, in order of execution."""
    if ATTRIBUTE not in exported.mlir_module():
        return []
    with mlir.make_ir_context():
        module = ir.Module.parse(exported.mlir_module())
        return [Mark(path, dtype, shape) for _, path, dtype, shape in _marked(_inner(module))]


def with_modules(exported: Exported, paths: Sequence[str]) -> Exported:
    """The program with the outputs of modules beside its own: `{"outputs": …, "modules": {path: …}}`."""
    with mlir.make_ir_context():
        module = ir.Module.parse(exported.mlir_module())
        found = {
            path: (value, Mark(path, dtype, shape)) for value, path, dtype, shape in _marked(_inner(module))
        }
        _also_return(module, [found[path][0] for path in paths])
        data = _serialised(module)
    avals = [_aval(exported, found[path][1]) for path in paths]
    outputs = jax.tree.unflatten(exported.out_tree, list(range(len(exported.out_avals))))
    tree = jax.tree.structure((outputs, [0] * len(paths)))
    more = (None,) * len(paths)
    return replace(
        exported,
        out_tree=tree,
        out_avals=(*exported.out_avals, *avals),
        mlir_module_serialized=data,
        out_shardings_hlo=(*exported.out_shardings_hlo, *more),
        _out_named_shardings=(*exported._out_named_shardings, *more),
    )


def _functions(module: ir.Module) -> dict[str, Any]:
    return {
        ir.StringAttr(operation.attributes["sym_name"]).value: operation
        for operation in module.body.operations
        if isinstance(operation, func.FuncOp)
    }


def _inner(module: ir.Module) -> Any:
    """The function that computes: `main`, or the one it calls once sizes are checked."""
    functions = _functions(module)
    call = _call_of(functions)
    return functions[MAIN] if call is None else functions[_callee(call)]


def _call_of(functions: dict[str, Any]) -> Any:
    block = functions[MAIN].regions[0].blocks[0]
    ending = block.operations[len(block.operations) - 1]
    owners = {operand.owner for operand in ending.operands}
    (only,) = owners if len(owners) == 1 else (None,)
    calls = [op for op in block.operations if isinstance(op, func.CallOp)]
    return next((op for op in calls if only is not None and op.operation == only), None)


def _callee(call: Any) -> str:
    return str(ir.FlatSymbolRefAttr(call.attributes["callee"]).value)


def _marked(function: Any) -> list[tuple[Any, str, str, str]]:
    return [
        (operation.results[number], path, dtype, shape)
        for operation in function.regions[0].blocks[0].operations
        for path, number, dtype, shape in notes_of(operation)
    ]


def _also_return(module: ir.Module, values: Sequence[Any]) -> None:
    """Make values of the inner function results of it, and of `main`."""
    functions = _functions(module)
    call = _call_of(functions)
    if call is None:
        _extend(functions[MAIN], values)
        return
    inner = functions[_callee(call)]
    _extend(inner, values)
    results = ir.FunctionType(ir.TypeAttr(inner.attributes["function_type"]).value).results
    with ir.InsertionPoint(call), ir.Location.unknown():
        wider = func.CallOp(results, ir.FlatSymbolRefAttr.get(_callee(call)), list(call.operands))
    before = len(call.results)
    for old, new in zip(call.results, wider.results, strict=False):
        old.replace_all_uses_with(new)
    call.operation.erase()
    _extend(functions[MAIN], list(wider.results)[before:])


def _extend(function: Any, values: Sequence[Any]) -> None:
    kind = ir.FunctionType(ir.TypeAttr(function.attributes["function_type"]).value)
    results = [*kind.results, *(value.type for value in values)]
    function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(kind.inputs, results))
    if "res_attrs" in function.attributes:
        empty = ir.DictAttr.get({})
        given = [*ir.ArrayAttr(function.attributes["res_attrs"]), *[empty] * len(values)]
        function.attributes["res_attrs"] = ir.ArrayAttr.get(given)
    block = function.regions[0].blocks[0]
    ending = block.operations[len(block.operations) - 1]
    with ir.InsertionPoint(ending), ir.Location.unknown():
        func.ReturnOp([*ending.operands, *values])
    ending.operation.erase()


def _serialised(module: ir.Module) -> bytes:
    from jax._src.export._export import _module_to_bytecode

    module.operation.verify()
    return bytes(_module_to_bytecode(module))


def _aval(exported: Exported, mark: Mark) -> Any:
    shape: tuple[Any, ...] = ()
    if mark.shape:
        scope = next(
            (dim.scope for aval in exported.in_avals for dim in aval.shape if hasattr(dim, "scope")), None
        )
        shape = tuple(jax_export.symbolic_shape(mark.shape + ",", scope=scope))
    with jax.enable_x64(True):
        return jax.core.ShapedArray(shape, dtype_of(mark.dtype))
