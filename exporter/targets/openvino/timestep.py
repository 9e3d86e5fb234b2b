"""The sinusoids of whole timesteps as a table.

Where OpenVINO computes in bfloat16 it rounds the timestep too: 501 becomes 500 or 502 before its sine is
taken, and the UNet is up to 4 % off. PyTorch keeps float32 for that part at any precision. Integers are
never rounded, so for int64 timesteps the sinusoid is looked up instead of computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import openvino

    from exporter.architectures.base import Component

TABLE = "timestep_table"
"""Name of the constant: float32 `[rows + 1, channels]`, the last row NaN."""
MODULE = "time_proj"
DEFAULT_STEPS = 1000


def rows_of(component: Component) -> int:
    """Timesteps 0 to `num_train_timesteps` of the checkpoint's scheduler (`steps_offset` may add one)."""
    if "scheduler" not in component.checkpoint.component_classes:
        return DEFAULT_STEPS + 1
    return int(component.checkpoint.config("scheduler").get("num_train_timesteps") or DEFAULT_STEPS) + 1


def tabulate(model: openvino.Model, tensor: str, rows: int) -> bool:
    """Look the sinusoid up instead of computing it. Its values are those of the graph itself.

    Timesteps outside `range(rows)` give NaN: that is seen, and a picture of another timestep is not.

    Args:
        model: With an int64 input `timestep` of shape [1]; changed in place.
        tensor: Name of the sinusoid, float32 `[batch, channels]`.
        rows: How many timesteps.

    Returns:
        Whether it was done: not where the tensor depends on the value of another input.
    """
    import numpy as np
    from openvino import opset13 as ops

    computed = next(p for node in model.get_ordered_ops() for p in node.outputs() if tensor in p.get_names())
    inputs = _inputs(computed)
    if inputs is None:
        return False
    timestep, sized = inputs
    values = _evaluate(computed, timestep, sized, rows)
    values = np.vstack([values, np.full_like(values[:1], np.nan)])

    def number(value: int | list[int]) -> openvino.Node:
        return ops.constant(np.array(value, np.int64))

    beyond = number(rows)
    known = ops.logical_and(ops.greater_equal(timestep, number(0)), ops.less(timestep, beyond))
    row = ops.select(known, timestep, beyond)
    found = ops.gather(ops.constant(values, name=TABLE), row, number(0))
    batch = computed.get_partial_shape()[0]
    if batch.is_static:
        count = number([batch.get_length()])
    else:
        count = ops.gather(ops.shape_of(sized), number([0]), number(0))
    shape = ops.concat([count, number([values.shape[1]])], 0)
    looked_up = ops.broadcast(found, shape, name=f"{tensor}/Lookup").output(0)
    for user in list(computed.get_target_inputs()):
        user.replace_source_output(looked_up)
    looked_up.set_names({tensor})
    model.validate_nodes_and_infer_types()
    return True


def _inputs(value: openvino.Output) -> tuple[openvino.Node, openvino.Node | None] | None:
    """The timestep, and the input whose batch size is asked for; None if values of others are needed."""
    timestep = sized = None
    seen: set[str] = set()
    waiting = [value.get_node()]
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() in seen:
            continue
        seen.add(node.get_friendly_name())
        sources = [port.get_source_output().get_node() for port in node.inputs()]
        if node.get_type_name() == "ShapeOf" and sources[0].get_type_name() == "Parameter":
            sized = sources[0]
        elif node.get_type_name() != "Parameter":
            waiting += sources
        elif node.output(0).get_any_name() == "timestep":
            timestep = node
        else:
            return None
    return (timestep, sized) if timestep is not None else None


def _evaluate(
    value: openvino.Output, timestep: openvino.Node, sized: openvino.Node | None, rows: int
) -> np.ndarray:
    """The first row of `value` for every timestep, by OpenVINO's plain operators.

    Not by a compiled model: that would depend on the CPU, and two exports would differ in their bytes.
    """
    import numpy as np
    import openvino

    parameters = [timestep] if sized is None else [timestep, sized]
    part = openvino.Model([value], parameters, "sinusoid").clone()
    given = [openvino.Tensor(np.zeros(1, np.int64))]
    if sized is not None:
        shape = [d.get_length() if d.is_static else 1 for d in sized.get_output_partial_shape(0)]
        given.append(openvino.Tensor(np.zeros(shape, np.float32)))
    result = openvino.Tensor(openvino.Type.f32, openvino.Shape([0, 0]))
    table = []
    for step in range(rows):
        given[0].data[:] = step
        part.evaluate([result], given)
        table.append(np.array(result.data[0], copy=True))
    return np.stack(table)
