"""What OpenVINO's common transformations leave behind.

They drop an addition of zeros behind a product with constants only, and the weights are held back meanwhile;
and they join reshapes before they turn transpositions into more of them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import openvino


def tidy(model: openvino.Model, wanted: Collection[str]) -> int:
    """Drop additions of zeros, and join a reshape with the one before it.

    Args:
        model: Changed in place; what it computes stays the same.
        wanted: Names of tensors that must still be found: a reshape that is asked for stays.

    Returns:
        The number of nodes that are gone.
    """
    gone = 0
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if (kind == "Add" and _drop_zeros(node)) or (kind == "Reshape" and _join(node, wanted)):
            gone += 1
    if gone:
        model.validate_nodes_and_infer_types()
    return gone


def _drop_zeros(node: openvino.Node) -> bool:
    """Let what reads `x + 0` read `x`, which then has both names; a bias that is zero, for one."""
    places = [place for place in (0, 1) if node.input_value(place).get_node().get_type_name() == "Constant"]
    if len(places) != 1:
        return False
    zeros, source = node.input_value(places[0]).get_node(), node.input_value(1 - places[0])
    if not zeros.get_element_type().is_real() or np.any(zeros.get_data()):
        return False
    shape = source.get_partial_shape()
    if source.get_node().get_type_name() == "Parameter" or shape.rank.is_dynamic:
        return False
    sizes = list(zeros.get_output_shape(0))
    ahead = len(shape) - len(sizes)
    if ahead < 0 or any(
        size != 1 and (shape[ahead + axis].is_dynamic or shape[ahead + axis].get_length() != size)
        for axis, size in enumerate(sizes)
    ):
        return False  # it broadcasts
    port = node.output(0)
    users = list(port.get_target_inputs())
    names = port.get_names()
    if not any(user.get_node().get_type_name() == "Result" for user in users):
        names |= source.get_names()  # an output keeps the one name that clients know
    port.set_names(set())
    source.set_names(names)
    for user in users:
        user.replace_source_output(source)
    return True


def _join(node: openvino.Node, wanted: Collection[str]) -> bool:
    """Reshape what the reshape before it reshapes, where one constant shape says both."""
    from openvino import opset13 as ops

    first = node.input_value(0).get_node()
    if first.get_type_name() != "Reshape" or len(first.output(0).get_target_inputs()) != 1:
        return False
    if any(name in wanted for name in first.output(0).get_names()):
        return False
    before, after = _target(first), _target(node)
    if before is None or after is None:
        return False
    target = []
    for axis, dim in enumerate(node.output(0).get_partial_shape()):
        if after[axis] == 0 and before[axis : axis + 1] == [0]:
            target.append(0)  # the size that both copy is the first input's
        else:
            target.append(dim.get_length() if dim.is_static else -1)
    if target.count(-1) > 1:
        return False
    if target != after:
        node.input(1).replace_source_output(ops.constant(np.array(target, np.int64)).output(0))
    node.input(0).replace_source_output(first.input_value(0))
    return True


def _target(node: openvino.Node) -> list[int] | None:
    """The constant shape that a Reshape takes, where zeros copy."""
    shape = node.input_value(1).get_node()
    if shape.get_type_name() != "Constant" or not node.get_attributes()["special_zero"]:
        return None
    return [int(size) for size in shape.get_data().reshape(-1)]
