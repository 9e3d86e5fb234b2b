"""ONNX Runtime's own optimised form of a graph, made once instead of at every opening."""

from __future__ import annotations

import platform
from contextlib import suppress
from pathlib import Path

from exporter.targets.base import RunOptions

MODEL = "model.onnx"
SMALL = "1024"
"""Bytes below which a constant stays in the graph file."""


def runtime(options: RunOptions) -> dict[str, str]:
    """Device, processor and version of ONNX Runtime: layouts are chosen by what the processor can do."""
    import onnxruntime

    from exporter.targets.onnx.runner import providers_of

    provider = providers_of(options)[0]
    return {
        "device": provider.removesuffix("ExecutionProvider"),
        "onnxruntime": onnxruntime.__version__,
        "processor": processor(),
    }


def processor() -> str:
    """The processor's name, as far as the system tells."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{platform.machine()} {line.partition(':')[2].strip()}"
    return f"{platform.machine()} {platform.processor()}".strip()


def compile_graph(path: Path, options: RunOptions, folder: Path) -> Path:
    """Let ONNX Runtime optimise a graph for the device, and keep what it made with its weights."""
    from exporter.targets.onnx.runner import OnnxRunner

    target = folder / MODEL
    with OnnxRunner(path, options, save=target):
        return target
