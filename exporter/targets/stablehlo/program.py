"""From a program of ATen operators to a serialised `jax.export` program."""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import export as jax_export

from exporter.errors import UnsupportedError
from exporter.graph.capture import is_cast, module_of
from exporter.targets.stablehlo.capture import Captured, alive
from exporter.targets.stablehlo.lowering import TABLE, dtype_of
from exporter.targets.stablehlo.marks import mark
from exporter.targets.traced import module_outputs

if TYPE_CHECKING:
    import torch

    from exporter.architectures.base import Component, Size, TensorSpec

BORDER = {"float32": jnp.float32, "int64": jnp.int32, "int32": jnp.int32}
"""Dtypes at the border. JAX has no int64 unless told so and would cut ids off without a word: so they are
declared int32, which any JAX passes as it is. Inside, whatever is int64 in PyTorch is int64."""
SIZES: dict[Any, Callable[..., Any]] = {
    operator.add: operator.add, operator.sub: operator.sub, operator.mul: operator.mul,
    operator.floordiv: operator.floordiv, operator.mod: operator.mod, operator.neg: operator.neg,
    math.trunc: lambda value: value,
}  # fmt: skip


def lower(
    component: Component, captured: Captured, static: Size | None, dtype: str, platforms: Sequence[str]
) -> jax_export.Exported:
    """
    Args:
        captured: The program.
        static: Bake this size; None keeps sizes symbols.
        dtype: Of the arithmetic; inputs and outputs are cast at the border.
        platforms: What to lower for, by JAX's names.

    Returns:
        A program that is called as `call(weights, **inputs)` and gives outputs by name.

    Raises:
        UnsupportedError: An operator cannot be lowered as it is used; it and its module are named.
    """
    function = _function(component, captured, dtype)
    weights = {
        name: jax.ShapeDtypeStruct(recipe.shape, dtype_of(recipe.dtype))
        for name, recipe in captured.weights.items()
    }
    # 64-bit mode only while tracing: nothing is cut off that PyTorch computes in int64 or float64.
    with jax.enable_x64(True), _no_paths():
        inputs = arguments(component, captured, static)
        exported = jax_export.export(jax.jit(function), platforms=tuple(platforms))(weights, **inputs)
    return exported


def arguments(
    component: Component, captured: Captured, static: Size | None
) -> dict[str, jax.ShapeDtypeStruct]:
    """The inputs as JAX wants them described.

    A size that must be a multiple of 8 is `8*latent_height_over_8`: so JAX can divide it.
    """
    texts = {spec.name: [_symbol(dim, captured.multiples) for dim in spec.dims] for spec in component.inputs}
    scope = jax_export.SymbolicScope(_constraints(component, captured))
    result = {}
    for spec in component.inputs:
        kind = _border(component, spec)
        shape: tuple[Any, ...] = ()
        if static is not None:
            shape = spec.shape(static)
        elif spec.dims:
            shape = tuple(jax_export.symbolic_shape(",".join(texts[spec.name]) + ",", scope=scope))
        result[spec.name] = jax.ShapeDtypeStruct(shape, kind)
    return result


def _border(component: Component, spec: TensorSpec) -> Any:
    kind = BORDER.get(spec.dtype)
    if kind is None:
        raise UnsupportedError(
            f"The {component.name} takes or gives {spec.name!r} as {spec.dtype}, which JAX would cut off "
            "silently; a StableHLO artifact has float32 and int32 at its border."
        )
    return kind


def _symbol(dim: int | str, multiples: Mapping[str, int]) -> str:
    step = multiples.get(str(dim), 1)
    return str(dim) if step == 1 else f"{step}*{dim}_over_{step}"


def _constraints(component: Component, captured: Captured) -> list[str]:
    names = dict.fromkeys(d for spec in component.inputs for d in spec.dims if isinstance(d, str))
    found = []
    for dim in names:
        step = captured.multiples.get(dim, 1)
        symbol = dim if step == 1 else f"{dim}_over_{step}"
        low, high = captured.ranges.get(dim, (1, None))
        if low > 1:
            found.append(f"{symbol} >= {-(-low // step)}")
        if high is not None:
            found.append(f"{symbol} <= {high // step}")
    return found


def _function(component: Component, captured: Captured, dtype: str) -> Callable[..., dict[str, Any]]:
    """The program as a function of JAX arrays."""
    graph = captured.program.graph
    nodes = alive(graph)
    (output,) = (node for node in graph.nodes if node.op == "output")
    marked: dict[str, list[str]] = defaultdict(list)
    for path, name in module_outputs(graph).items():
        marked[name].append(path)
    wanted = dtype_of(dtype)
    user = captured.program.graph_signature.user_inputs
    placeholders = dict(zip(map(str, user), component.inputs, strict=True))
    for spec in component.outputs:
        _border(component, spec)

    def function(weights: dict[str, Any], **inputs: Any) -> dict[str, Any]:
        env: dict[torch.fx.Node, Any] = {}
        for node in graph.nodes:
            if node.op != "placeholder" or not node.users:
                continue
            if node.name in captured.parameters:
                env[node] = weights[captured.parameters[node.name]]
            elif node.name in captured.constants:
                env[node] = constant(captured.constants[node.name])
            else:
                spec = placeholders[node.name]
                value = inputs[spec.name]
                env[node] = value.astype(wanted) if is_cast(spec) else value.astype(dtype_of(spec.dtype))
        for node in nodes:
            env[node] = call(component.name, node, env)
            if node.name in marked:
                env[node] = mark(env[node], marked[node.name])
        values = [env[node] for node in output.args[0]]  # type: ignore[union-attr,arg-type]
        return {
            spec.name: value.astype(BORDER[spec.dtype])
            for spec, value in zip(component.outputs, values, strict=True)
        }

    function.__name__ = component.name
    return function


def constant(tensor: torch.Tensor) -> Any:
    """A small tensor as a constant of the program."""
    import torch

    kind = dtype_of(tensor.dtype)
    plain = tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
    return jnp.asarray(plain.numpy(), kind)


INCONCLUSIVE = "InconclusiveDimensionOperation"
"""JAX's error where it cannot decide about a symbolic size; it moved between modules, so by its name."""


def call(component: str, node: torch.fx.Node, env: Mapping[Any, Any]) -> Any:
    """What a node gives.

    Raises:
        UnsupportedError: It has no lowering, cannot be lowered as it is used, or would give another dtype
            than in PyTorch.
    """
    import torch
    from torch.fx import Node

    def value_of(argument: Any) -> Any:
        if isinstance(argument, Node):
            return env[argument]
        if isinstance(argument, list | tuple):
            return [value_of(one) for one in argument]
        return argument

    arguments = [value_of(one) for one in node.args]
    keywords = {name: value_of(one) for name, one in node.kwargs.items()}
    name = str(node.target)
    if node.target is operator.getitem:
        return arguments[0][arguments[1]]
    if name == "aten.sym_size.int":
        return arguments[0].shape[arguments[1]]
    lowering = SIZES.get(node.target) or TABLE.get(name)
    module = module_of(node)
    where = f"module {module!r}" if module else "its own forward"
    if lowering is None:
        raise UnsupportedError(
            f"The {component} uses the operator {name} in {where}, which has no lowering to StableHLO."
        )
    try:
        found = lowering(*arguments, **keywords)
    except Exception as error:  # jax raises many types
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if any(kind.__name__ == INCONCLUSIVE for kind in type(error).__mro__):
            raise UnsupportedError(
                f"The {component} uses the operator {name} in {where} on free sizes of which JAX cannot tell "
                f"enough: {first}",
                hint="Add --static 1xHEIGHTxWIDTH, which leaves no size free.",
            ) from error
        raise UnsupportedError(
            f"The {component} uses the operator {name} in {where} in a way that has no lowering: {first}"
        ) from error
    for one, fake in zip(_several(found), _several(node.meta.get("val")), strict=False):
        if isinstance(fake, torch.Tensor) and one.dtype != dtype_of(fake.dtype):
            raise UnsupportedError(
                f"The {component} uses the operator {name} in {where}: its lowering gives "
                f"{one.dtype}, PyTorch {str(fake.dtype).removeprefix('torch.')}."
            )
    return found


def _several(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)


@contextmanager
def _no_paths() -> Iterator[None]:
    """Keep folders of this machine out of what is written: JAX notes the line of code of every operation."""
    flags = {
        "jax_include_full_tracebacks_in_locations": False,
        "jax_traceback_in_locations_limit": 0,
        "jax_hlo_source_file_canonicalization_regex": ".*",
    }
    before = {name: getattr(jax.config, name) for name in flags}
    for name, value in flags.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
