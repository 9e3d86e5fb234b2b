"""What a package says about itself: for people, and for whoever looks for the module behind a value."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from exporter.targets.coreml.layout import (
    OUTPUTS_KEY,
    Layout,
    bindings,
    description,
    has_attention,
    is_xl_text,
)
from exporter.targets.coreml.modules import Captured, Leaving, module_values, paths_of
from exporter.targets.coreml.names import model_id

if TYPE_CHECKING:
    from exporter.architectures.base import Component
    from exporter.targets.coreml.options import CoremlOptions

MODULES_KEY = "exporter.modules"
OWNERS_KEY = "exporter.owners"
VERSION_KEY = "exporter.version"
DATE_KEY = "com.github.apple.coremltools.conversion_date"


def module_map(captured: Captured, model: Any) -> dict[str, list[str]]:
    """Module path → [value of the program, layout], for modules whose output is a value of the program.

    The layout is `bc1s` where a linear layer became a convolution, else empty.
    """
    from exporter.targets.coreml.frontend import operations_by_handle

    operations = operations_by_handle(model)
    result = {}
    for path, leaving in module_values(captured).items():
        name = _value_of(leaving, operations)
        if name is not None:
            result[path] = [name, "bc1s" if path in captured.channels_first else ""]
    return result


def owners(captured: Captured, model: Any) -> dict[str, list[str]]:
    """Module path → the values of the program that its own code computes ("" is the component's code).

    What a pass made of several nodes belongs to the last of them; what it made of none (the cast of an
    output) to the component.
    """
    from exporter.targets.coreml.frontend import computed, operations_by_handle

    paths = {}
    for node in captured.program.graph.nodes:
        around = list(paths_of(node))
        paths[node.meta["debug_handle"]] = around[-1] if around else ""
    owner = {str(output.name): "" for operation in computed(model) for output in operation.outputs}
    for handle, operations in sorted(operations_by_handle(model).items()):
        for operation in operations:
            for output in operation.outputs:
                owner[str(output.name)] = paths.get(handle, "")
    result: dict[str, list[str]] = {}
    for name, path in owner.items():
        result.setdefault(path, []).append(name)
    return result


def _value_of(leaving: Leaving, operations: dict[int, list[Any]]) -> str | None:
    """The last operation made of a traced node, if it gives the node's shape.

    Passes fuse and remove operations; what they make carries the handle of what it replaces. A node of
    which nothing is left was a copy of another.
    """
    for handle in leaving.handles:
        made = operations.get(handle)
        if made:
            output = made[-1].outputs[0]
            return str(output.name) if tuple(output.shape) == leaving.shape else None
    return None


def describe(model: Any, component: Component, layout: Layout, options: CoremlOptions) -> None:
    """Fill in what Xcode and `exporter inspect` show. The date goes: equal input gives equal bytes."""
    from importlib.metadata import version

    checkpoint = component.checkpoint
    name = model_id(checkpoint)
    model.author = f"The authors of {name}; converted by exporter {version('exporter')}"
    model.license = f"That of {name}: see its model card."
    model.version = checkpoint.revision or version("exporter")
    model.short_description = (
        f"{component.name} ({component.class_name}) of {name}, {options.dtype}, "
        f"for {options.deployment_target}."
    )
    for feature in layout.inputs:
        model.input_description[feature.name] = description(feature.name)
    for feature in layout.outputs:
        model.output_description[feature.name] = description(feature.name, given=True)
    notes = model.user_defined_metadata
    notes.pop(DATE_KEY, None)
    notes["exporter.component"] = component.name
    notes["exporter.attention"] = options.attention if has_attention(component.name) else "original"
    notes["exporter.compute_units"] = options.compute_units
    notes[VERSION_KEY] = version("exporter")
    if checkpoint.revision:
        notes["exporter.revision"] = checkpoint.revision
    notes["identifier"] = name
    if is_xl_text(component.name, [spec.name for spec in component.outputs]):
        _, outputs = bindings(component)
        notes[OUTPUTS_KEY] = json.dumps({binding.name: binding.ours for binding in outputs})
