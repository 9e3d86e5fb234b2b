"""The graph room: a `Component` becomes a weight-free ONNX graph plus where each weight lies.

Shared by every target that goes through ONNX. Nothing here knows a target or parity.
`build()` captures and optimises without any weight in memory; `write()` streams the weights.
"""

from exporter.graph.attention import ATTENTION_MODES, Attention
from exporter.graph.build import Graph, build
from exporter.graph.weights import Recipe
from exporter.graph.write import SharedData, write

__all__ = ["ATTENTION_MODES", "Attention", "Graph", "Recipe", "SharedData", "build", "write"]
