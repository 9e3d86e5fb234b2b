"""Which module of the component an error of OpenVINO's ONNX reader is about."""

from __future__ import annotations

import re
from pathlib import Path


def where_in(source: Path, words: str) -> str | None:
    """The operator and its module, for a sentence; None where the error fits no node of the graph.

    OpenVINO names the node, whose name begins with the module's path, or only its operator: then the first
    node with that operator is meant.

    Args:
        source: The ONNX file; its weights are not read.
        words: The error in OpenVINO's own words.
    """
    import onnx

    try:
        nodes = list(onnx.load(source, load_external_data=False).graph.node)
    except Exception:  # whatever is wrong with the file is what OpenVINO has said
        return None
    said = set(re.findall(r"[\w./:-]+", words))
    said |= {word.strip(".:") for word in said}
    named = [node for node in nodes if node.name and node.name in said]
    of_kind = [node for node in nodes if {node.op_type, f"{node.domain}.{node.op_type}"} & said]
    # A node's name says more than an operator's, unless another sentence of the error names another operator.
    for node in [*named, *of_kind]:
        module = node.name.rpartition("/")[0]
        return f"{node.op_type} in module {module!r}" if module else f"{node.op_type} in its own forward"
    return None
