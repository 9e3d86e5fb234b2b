"""IN: where a model comes from. `resolve()` gives a `Checkpoint`; weights stay on disk until used."""

from exporter.checkpoints.checkpoint import Checkpoint
from exporter.checkpoints.resolve import open_source, resolve
from exporter.checkpoints.safetensors_file import SafetensorsFile, StoredTensor

__all__ = ["Checkpoint", "SafetensorsFile", "StoredTensor", "open_source", "resolve"]
