"""A component as a program of core ATen operators, without a weight in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.architectures.base import INNER, Component, Size
from exporter.checkpoints import StoredTensor
from exporter.errors import CheckpointError, UnsupportedError
from exporter.graph.capture import capture, module_of, quiet
from exporter.graph.skeleton import same_kind
from exporter.graph.weights import Recipe
from exporter.targets.stablehlo.lowering import TABLE
from exporter.targets.traced import limits

if TYPE_CHECKING:
    import torch

KEPT = ("scaled_dot_product_attention",)
"""Composite operators that are not taken apart: XLA has its own way with attention, and so have we."""
SKIPPED = (
    "aten._assert_tensor_metadata.default", "aten._assert_scalar.default", "aten._assert_async.msg",
    "aten.sym_constrain_range_for_size.default", "aten.sym_constrain_range.default",
)  # fmt: skip


@dataclass(frozen=True)
class Captured:
    """A program and what belongs to it.

    Attributes:
        program: Decomposed to core ATen. Parameters are fake.
        weights: Name as the library has it (`conv_in.weight`) → how its bytes are made.
        parameters: Name of the placeholder → name of the weight.
        constants: Name of the placeholder → a buffer's value.
        ranges: Symbol of the component → smallest and largest size it was proven for.
        multiples: Symbol → what its size must be a multiple of.
    """

    program: torch.export.ExportedProgram
    weights: dict[str, Recipe]
    parameters: dict[str, str]
    constants: dict[str, torch.Tensor]
    ranges: Mapping[str, tuple[int, int | None]]
    multiples: Mapping[str, int]


def captured(component: Component, static: Size | None, dtype: str) -> Captured:
    """Trace, decompose, and pair every parameter with the stored tensor it comes from.

    Raises:
        UnsupportedError: torch cannot trace the module, or an operator of it has no lowering.
        CheckpointError: Weights are missing, or do not fit the config.
    """
    import torch
    import torch._dynamo.config

    program = capture(component, static=static, dtype=dtype, attention="decomposed")
    ranges, steps = _sizes(component, program) if static is None else ({}, {})
    table = torch.export.default_decompositions()
    for overload in [each for each in table if any(name in str(each) for name in KEPT)]:
        del table[overload]
    # As in `capture`: with symbolic sizes the cache of fake operators rarely hits.
    with quiet(), torch.no_grad(), torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        program = program.run_decompositions(table)
    check_operators(component.name, program.graph)
    weights, parameters, constants = _weights(component, program, dtype)
    return Captured(program, weights, parameters, constants, ranges, steps)


def _sizes(
    component: Component, program: torch.export.ExportedProgram
) -> tuple[dict[str, tuple[int, int | None]], dict[str, int]]:
    """Ranges and multiples of symbols.

    torch's smallest sizes are left out: it counts from 2, and guards where a dim somewhere inside would be 1,
    for strides that no lowering depends on. JAX proves every shape anew, for all sizes from 1.
    """
    found, steps = limits(component, program)
    given = {dim for spec in component.inputs for dim in spec.dims if isinstance(dim, str)}
    for dim in ("height", "width"):
        if dim in given:  # pixels that make whole latent cells; torch rounds others, JAX has to divide
            steps[dim] = math.lcm(steps.get(dim, 1), component.native.factor)
    for dim in ("latent_height", "latent_width"):
        if dim in given and component.name == "transformer":  # patches; what is left over, torch drops
            steps[dim] = math.lcm(steps.get(dim, 1), component.multiple)
    return {dim: (1, high) for dim, (_, high) in found.items()}, steps


def check_operators(name: str, graph: torch.fx.Graph) -> None:
    """
    Raises:
        UnsupportedError: An operator that results depend on has no lowering; it and its module are named.
    """
    import torch

    for node in alive(graph):
        if not isinstance(node.target, torch._ops.OpOverload) or str(node.target) in TABLE:
            continue
        if str(node.target) == "aten.sym_size.int":
            continue
        module = module_of(node)
        where = f"module {module!r}" if module else "its own forward"
        raise UnsupportedError(
            f"The {name} uses the operator {node.target} in {where}, which has no lowering to StableHLO.",
            hint="Leave the component out with --component, or take another format.",
        )


def alive(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    """The calls that results depend on, in order: what only feeds an assertion is not computed."""
    wanted: set[torch.fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in wanted:
            wanted.update(node.all_input_nodes)
    return [
        node
        for node in graph.nodes
        if node in wanted and node.op == "call_function" and str(node.target) not in SKIPPED
    ]


def _weights(
    component: Component, program: torch.export.ExportedProgram, dtype: str
) -> tuple[dict[str, Recipe], dict[str, str], dict[str, torch.Tensor]]:
    import torch

    signature = program.graph_signature
    held = {**signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    weights: dict[str, Recipe] = {}
    parameters: dict[str, str] = {}
    constants: dict[str, torch.Tensor] = {}
    for node in program.graph.nodes:
        name = signature.inputs_to_parameters.get(node.name) or held.get(node.name)
        if node.op != "placeholder" or name is None or not node.users:
            continue
        if name not in component.weights and node.name in held:
            value = program.constants.get(name, program.state_dict.get(name))
            if not isinstance(value, torch.Tensor):
                raise UnsupportedError(f"The {component.name} has a buffer {name!r} without a value.")
            constants[node.name] = value.detach()
            continue
        kind = str(node.meta["val"].dtype).removeprefix("torch.")
        stored = _stored(component, name, tuple(int(n) for n in node.meta["val"].shape), kind)
        short = name.removeprefix(INNER)
        weights[short] = Recipe(stored, kind, stored.shape)
        parameters[node.name] = short
    return weights, parameters, constants


def _stored(component: Component, name: str, shape: tuple[int, ...], kind: str) -> StoredTensor:
    where = f"{component.checkpoint.source}, component {component.folder!r}"
    hint = "config.json and weights do not belong together, or a shard is missing."
    stored = component.weights.get(name)
    if stored is None:
        raise CheckpointError(
            f"{where}: the config asks for {name.removeprefix(INNER)!r} which the files do not hold.",
            hint=hint,
        )
    if stored.shape != shape:
        raise CheckpointError(
            f"{where}: {stored.name!r} has shape {list(stored.shape)} on disk, "
            f"the config asks for {list(shape)}.",
            hint=hint,
        )
    if not same_kind(stored, kind):
        raise CheckpointError(
            f"{where}: {stored.name!r} is stored as {stored.dtype}, the model computes it as {kind}.",
            hint=hint,
        )
    return stored
