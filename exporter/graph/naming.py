"""Names of nodes and values in the finished graph."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from exporter.graph.capture import clean_path
from exporter.graph.modules import scopes_of

if TYPE_CHECKING:
    import onnx_ir as ir


def finish(model: ir.Model, modules: dict[str, ir.Value]) -> None:
    """Name each node `module.path/Operator` (numbered where repeated), each value once, and drop notes.

    Shapes of inner values go too: they are formulas over torch's own symbols, and runtimes infer them.

    Args:
        model: Changed in place.
        modules: Module path → its value, which is named after the innermost module that returns it.
    """
    counts: Counter[str] = Counter()
    border = {*model.graph.inputs, *model.graph.outputs}
    titles: dict[ir.Value, str] = {}
    for path, value in modules.items():
        titles.setdefault(value, path)
    for node in model.graph:
        scopes = [path for path in map(clean_path, scopes_of(node)) if path]
        name = f"{scopes[-1] if scopes else ''}/{node.op_type}"
        number = counts[name]
        counts[name] += 1
        node.name = f"{name}_{number}" if number else name
        node.metadata_props.clear()
        node.doc_string = None
        for place, value in enumerate(node.outputs):
            value.metadata_props.clear()
            if value in border:
                continue
            value.shape = None
            value.type = None
            value.name = titles.get(value) or (f"{node.name}.{place}" if place else node.name)
    constants = 0
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.metadata_props.clear()
    initializers = model.graph.initializers
    for key, value in list(initializers.items()):
        value.metadata_props.clear()
        if value.const_value is not None:
            initializers.pop(key)
            value.name = f"constant_{constants}"
            initializers[value.name] = value
            constants += 1
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.name = "main_graph"
    model.producer_name = "exporter"
    model.producer_version = None
    model.doc_string = None
