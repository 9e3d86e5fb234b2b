"""Which operator, and which module of the component, an error of OpenVINO's ONNX reader is about."""

from __future__ import annotations

import re
from pathlib import Path

NO_RULE = re.compile(r"No conversion rule found for operations: (.+)")
"""Operators that the reader does not know, separated by commas. That others fail is a consequence."""
FAILED = re.compile(r"<Node\((?P<operator>[\w.]+)\)(?:: (?P<name>[^>]+))?>")
"""A node whose conversion failed; its name begins with the module's path."""


def cause(words: str) -> str | None:
    """The one sentence that names the cause, where OpenVINO's many lines have one."""
    match = NO_RULE.search(words)
    return match[0].strip() if match else None


def where_in(source: Path, words: str) -> str | None:
    """The operator and its module, for a sentence; None where the error fits no node of the graph.

    Of several nodes with an operator that is unknown, the first is meant.

    Args:
        source: The ONNX file; its weights are not read.
        words: The error in OpenVINO's own words.
    """
    import onnx

    try:
        nodes = list(onnx.load(source, load_external_data=False).graph.node)
    except Exception:  # whatever is wrong with the file is what OpenVINO has said
        return None
    unknown, failed = NO_RULE.search(words), FAILED.search(words)
    if unknown is not None:
        kinds = {re.sub(r"-\d+$", "", kind.strip()) for kind in unknown[1].split(",")}
        found = [node for node in nodes if {node.op_type, f"{node.domain}.{node.op_type}"} & kinds]
    elif failed is not None:
        found = [node for node in nodes if node.op_type == failed["operator"]]
        # A node with the name of its only output is called by that.
        found = [n for n in found if failed["name"] in (n.name, *n.output)] or found
    else:
        return None
    for node in found:
        module = node.name.rpartition("/")[0]
        return f"{node.op_type} in module {module!r}" if module else f"{node.op_type} in its own forward"
    return None
