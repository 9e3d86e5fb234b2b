"""Artifacts of the tiny checkpoint as ONNX, exported once per test run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime")

from exporter.architectures import Component, Size, components_of
from exporter.artifact import ComponentRecord, hash_files
from exporter.checkpoints import resolve
from exporter.progress import NullProgress
from exporter.targets import Runner, RunOptions
from exporter.targets.onnx import OnnxOptions, OnnxTarget

NAMES = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


@dataclass(frozen=True)
class Exported:
    """Components written below one folder, and how to open them."""

    root: Path
    source: Path
    options: OnnxOptions
    components: dict[str, Component]
    records: dict[str, ComponentRecord]

    def open(self, name: str, **options: Any) -> Runner:
        return OnnxTarget().open(self.root, self.records[name], RunOptions(threads=1, **options))


def export(source: Path, root: Path, names: tuple[str, ...] = NAMES, **options: Any) -> Exported:
    """Export components of a checkpoint below `root`, with the files around them."""
    target, parsed = OnnxTarget(), OnnxOptions(**options)
    checkpoint = resolve(source)
    components = {c.name: c for c in components_of(checkpoint) if c.name in names}
    records = {}
    for name, component in components.items():
        result = target.export(component, parsed, root, NullProgress())
        records[name] = ComponentRecord(
            name=name,
            entry=result.entry.relative_to(root).as_posix(),
            files=hash_files(result.files, root),
            inputs=list(result.inputs),
            outputs=list(result.outputs),
            parameters=component.parameters,
            dtype=parsed.dtype,
            details=dict(result.details),
        )
    target.finish(checkpoint, list(components.values()), parsed, root)
    return Exported(root, source, parsed, components, records)


def reference(
    component: Component, size: Size, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs, and what the unpatched float32 module makes of them."""
    inputs = component.example_inputs(size, seed)
    with torch.no_grad():
        outputs = component.reference_module()(**inputs)
    named = {spec.name: value.numpy() for spec, value in zip(component.outputs, outputs, strict=True)}
    return {name: value.numpy() for name, value in inputs.items()}, named


def relative(result: np.ndarray, expected: np.ndarray) -> float:
    """‖result − expected‖ / ‖expected‖, in float64."""
    truth = expected.astype(np.float64)
    return float(np.linalg.norm(result.astype(np.float64) - truth) / np.linalg.norm(truth))


def assert_close(results: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], limit: float) -> None:
    assert list(results) == list(expected)
    for name, truth in expected.items():
        assert results[name].shape == truth.shape, name
        assert results[name].dtype == np.float32, name
        error = relative(results[name], truth)
        assert error <= limit, f"{name}: {error}"


@pytest.fixture(scope="session")
def exported(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(tiny, tmp_path_factory.mktemp("onnx"))


@pytest.fixture(scope="session")
def exported_half(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(tiny, tmp_path_factory.mktemp("onnx16"), dtype="float16")
