"""A captured program as an ONNX graph, weights named but absent."""

from __future__ import annotations

import contextlib
import io
import re
from typing import TYPE_CHECKING

from exporter.architectures.base import Component
from exporter.errors import UnsupportedError
from exporter.graph.capture import module_of, quiet

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

OPERATOR = re.compile(r"OpOverload\(op='([^']+)', overload='([^']+)'\)")


def translate(component: Component, program: torch.export.ExportedProgram, opset: int) -> ir.Model:
    """Translate by torch's own operator library; the result is neither optimised nor checked.

    Raises:
        UnsupportedError: An operator has no translation; the message names it and its module.
    """
    import torch
    from torch.onnx.errors import OnnxExporterError

    promote(program.graph)
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        try:
            exported = torch.onnx.export(
                program, dynamo=True, optimize=False, opset_version=opset, verbose=False
            )
        except OnnxExporterError as error:
            raise _explain(component, program, error) from error
    assert exported is not None
    return exported.model


def promote(graph: torch.fx.Graph) -> None:
    """Cast what is concatenated to the dtype of the result; torch promotes by itself, ONNX does not."""
    import torch

    for node in graph.nodes:
        if node.op != "call_function" or node.target not in (
            torch.ops.aten.cat.default,
            torch.ops.aten.concat.default,
        ):
            continue
        dtype = node.meta["val"].dtype
        parts = []
        for part in node.args[0]:
            if part.meta["val"].dtype != dtype:
                with graph.inserting_before(node):
                    cast = graph.call_function(torch.ops.aten._to_copy.default, (part,), {"dtype": dtype})
                cast.meta = dict(node.meta, val=part.meta["val"].to(dtype))
                part = cast
            parts.append(part)
        node.args = (parts, *node.args[1:])


def _explain(
    component: Component, program: torch.export.ExportedProgram, error: Exception
) -> UnsupportedError:
    """Find out which operator of which module torch could not translate."""
    chain: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(str(cause))
        cause = cause.__cause__
    text = "\n".join(chain)
    match = OPERATOR.search(text)
    if match is None:
        return UnsupportedError(
            f"The {component.name} cannot be translated to ONNX: {chain[-1].splitlines()[0]}"
        )
    operator = f"{match[1]}.{match[2]}"
    modules = [module_of(node) for node in program.graph.nodes if str(node.target) == operator]
    where = f"module {modules[0]!r}" if modules and modules[0] else "its own forward"
    return UnsupportedError(
        f"The {component.name} uses the operator {operator} in {where}, which has no ONNX translation."
    )
