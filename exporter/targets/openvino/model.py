"""Surgery on an `openvino.Model` between conversion and saving, and the notes kept inside the file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from exporter.errors import ArtifactError
from exporter.targets.openvino.timestep import TABLE

if TYPE_CHECKING:
    import numpy as np
    import openvino

NOTES = "exporter"
"""Section of the model's `rt_info` (kept in the `.xml`) that is ours."""
MODULES = "modules"
COUNTED = re.compile(r"^\w+_\d+(\.\d+)?$")
"""A name OpenVINO made up (`Reshape_5674`). Names from the graph have the module's path: `/` or `.`."""

BORDER = re.compile(r"^(Parameter|Result)_\d+$")
CPP_PLACE = re.compile(r"\.[ch]pp:\d+")
COMPRESSED = "_compressed"
"""What OpenVINO appends to the name of a constant that it has rounded to float16."""


def name_nodes(model: openvino.Model) -> None:
    """Give nodes without a name of their own one that depends on the graph only.

    OpenVINO numbers them by a counter of the process, so two exports would differ in their bytes.
    """
    for position, node in enumerate(model.get_ordered_ops()):
        kind, old = node.get_type_name(), node.get_friendly_name()
        border = kind in ("Parameter", "Result")  # named by whoever made the graph, as a rule
        if COUNTED.match(old) and (not border or old.startswith(f"{kind}_")):
            node.set_friendly_name(f"{kind}_{position}")
        for port in node.outputs():
            names = port.get_names()
            kept = {name for name in names if not BORDER.match(name)}
            if kept != names:
                port.set_names(kept or {f"{kind}_{position}"})


def drop_conversion_notes(model: openvino.Model) -> None:
    """Forget how the model was made (the name of a temporary file)."""
    notes = model.get_rt_info()
    if "conversion_parameters" in notes:
        del notes["conversion_parameters"]


def widen_scalar(model: openvino.Model, name: str, dtype: str) -> None:
    """Turn a scalar float32 input into one of shape [1] and the given dtype.

    That is what the clients pass: OpenVINO GenAI sets `timestep` as an int64 tensor of one element, and
    OpenVINO's Python makes every scalar one.
    """
    import numpy as np
    import openvino
    from openvino import opset13 as ops

    old = next((p for p in model.get_parameters() if p.output(0).get_any_name() == name), None)
    if old is None:
        return
    kind = openvino.Type.i64 if dtype == "int64" else openvino.Type.f32
    new = ops.parameter([1], kind, name=name)
    value = new if kind == openvino.Type.f32 else ops.convert(new, "f32", name=f"{name}_float")
    scalar = ops.squeeze(value, ops.constant(np.array([0]), name=f"{name}_axis"), name=f"{name}_scalar")
    for user in list(old.output(0).get_target_inputs()):
        user.replace_source_output(scalar.output(0))
    new.output(0).set_names({name})
    position = model.get_parameter_index(old)
    order = [new if i == position else p for i, p in enumerate(model.get_parameters())]
    model.remove_parameter(old)
    # Parameters are positional for some clients, so the new one takes the old one's place.
    for parameter in order:
        if parameter is not new:
            model.remove_parameter(parameter)
    model.add_parameters(order)
    model.validate_nodes_and_infer_types()


def vectors(model: openvino.Model) -> dict[str, np.ndarray]:
    """Every float32 constant with at most one dimension larger than 1, and the table of timesteps, by
    the name of the node."""
    return {
        node.get_friendly_name(): node.get_data()
        for node in model.get_ops()
        if node.get_type_name() == "Constant"
        and node.get_element_type().get_type_name() == "f32"
        and (is_vector(node.get_output_shape(0)) or node.get_friendly_name() == TABLE)
    }


def is_vector(shape: Sequence[int]) -> bool:
    return sum(size != 1 for size in shape) <= 1


def tensor_names(model: openvino.Model) -> set[str]:
    """Every name by which a tensor of the graph can be asked for."""
    return {name for node in model.get_ops() for port in node.outputs() for name in port.get_names()}


def write_modules(model: openvino.Model, modules: Mapping[str, str]) -> None:
    """Keep `module path → tensor name` in the model, in order of execution."""
    model.set_rt_info(json.dumps(dict(modules), separators=(",", ":")), [NOTES, MODULES])


def read_modules(model: openvino.Model) -> dict[str, str]:
    """What `write_modules` kept; empty for a model of another maker.

    Raises:
        ArtifactError: The note is damaged.
    """
    if not model.has_rt_info([NOTES, MODULES]):
        return {}
    try:
        modules = json.loads(model.get_rt_info([NOTES, MODULES]).astype(str))
    except (ValueError, RuntimeError) as error:
        raise ArtifactError(f"The list of modules inside the OpenVINO file is damaged: {error}.") from error
    known = tensor_names(model)
    return {str(module): str(tensor) for module, tensor in modules.items() if tensor in known}


def plain(error: Exception) -> str:
    """The words of an OpenVINO error without the places in its C++ sources, on one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    words = [line for line in lines if line and not CPP_PLACE.search(line) and not line.endswith("Failure:")]
    return " ".join(words)[:300] or type(error).__name__
