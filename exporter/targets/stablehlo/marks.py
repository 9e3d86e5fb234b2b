"""Which operation of a StableHLO program computes what a module returns: written into the program itself.

Operations carry an attribute that costs nothing when they run. So the outputs of modules can be asked of the
very bytes that are shipped (`intermediates`), also when these were changed since.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from jax.extend.core import Primitive
from jax.interpreters import mlir
from jaxlib.mlir import ir

ATTRIBUTE = "exporter.modules"

_mark = Primitive("exporter_mark")
_mark.def_impl(lambda x, *, paths: x)
_mark.def_abstract_eval(lambda x, *, paths: x)


def mark(value: Any, paths: Sequence[str]) -> Any:
    """The same value, known in the program as what the modules at `paths` return."""
    return _mark.bind(value, paths=tuple(paths))


def _lower(ctx: Any, value: Any, *, paths: tuple[str, ...]) -> list[Any]:
    operation = value.owner
    if not isinstance(operation, ir.Block):  # an argument that is returned as it came
        aval = ctx.avals_in[0]
        notes = notes_of(operation)
        notes += [
            [path, ir.OpResult(value).result_number, str(aval.dtype), ",".join(map(str, aval.shape))]
            for path in paths
        ]
        operation.attributes[ATTRIBUTE] = ir.StringAttr.get(json.dumps(notes))
    return [value]


# Not cacheable: a cached rule is emitted as a function of its own, whose argument has no operation.
mlir.register_lowering(_mark, _lower, cacheable=False)


def notes_of(operation: Any) -> list[list[Any]]:
    """[path, number of the result, dtype, shape as text] of each module that returns a result of this."""
    if ATTRIBUTE not in operation.attributes:
        return []
    return list(json.loads(ir.StringAttr(operation.attributes[ATTRIBUTE]).value))
