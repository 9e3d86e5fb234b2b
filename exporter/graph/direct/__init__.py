"""A captured program straight to ONNX, without torch's general exporter.

Diffusion models use some sixty operators. Translating those by hand gives the graph that is wanted at
once: no decomposition pass, no rewriting afterwards, no redundant node, and a third of the time. A
program with any other operator raises `NotCovered` and takes torch's own route.
"""

from exporter.graph.direct.emitter import NotCovered
from exporter.graph.direct.program import translate

__all__ = ["NotCovered", "translate"]
