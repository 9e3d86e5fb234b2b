"""Artifacts of the tiny checkpoint, exported once per test run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("openvino")

from exporter.architectures import Component, Size, components_of
from exporter.artifact import ComponentRecord, hash_files
from exporter.checkpoints import resolve
from exporter.progress import NullProgress
from exporter.targets import Runner, RunOptions
from exporter.targets.openvino import OpenVinoOptions, OpenVinoTarget

NAMES = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


@dataclass(frozen=True)
class Exported:
    """Components written below one folder, and how to open them."""

    root: Path
    components: dict[str, Component]
    records: dict[str, ComponentRecord]

    def open(self, name: str, **options: Any) -> Runner:
        return OpenVinoTarget().open(self.root, self.records[name], RunOptions(threads=1, **options))


def export(source: Path, root: Path, names: tuple[str, ...] = NAMES, **options: Any) -> Exported:
    """Export components of a checkpoint below `root`."""
    target, parsed = OpenVinoTarget(), OpenVinoOptions(**options)
    components = {c.name: c for c in components_of(resolve(source)) if c.name in names}
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
    return Exported(root, components, records)


@pytest.fixture(scope="session")
def exported(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(tiny, tmp_path_factory.mktemp("openvino"))


@pytest.fixture(scope="session")
def half(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(tiny, tmp_path_factory.mktemp("openvino-float16"), dtype="float16")


def arrays(runner: Runner, tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """A component's example inputs in the dtypes and shapes that the file declares."""
    result = {}
    for spec in runner.inputs:
        value = tensors[spec.name].numpy().astype(spec.dtype)
        result[spec.name] = value.reshape(1) if spec.dims == [1] else value
    return result


def relative(value: np.ndarray, truth: torch.Tensor) -> float:
    """Relative L2 error; infinite where shapes differ."""
    expected = truth.double().numpy()
    if value.shape != expected.shape:
        return float("inf")
    return float(np.linalg.norm(value.astype(np.float64) - expected) / np.linalg.norm(expected))


def errors(
    exported: Exported,
    name: str,
    size: Size,
    change: Callable[[torch.nn.Module], None] = lambda module: None,
    **options: Any,
) -> list[float]:
    """Relative error of every output of a component against its PyTorch module."""
    component = exported.components[name]
    tensors = component.example_inputs(size, seed=3)
    module = component.reference_module()
    change(module)
    with torch.no_grad():
        truth = module(**tensors)
    with exported.open(name, **options) as runner:
        outputs = runner.run(arrays(runner, tensors))
    assert list(outputs) == [spec.name for spec in component.outputs]
    return [relative(outputs[spec.name], t) for spec, t in zip(component.outputs, truth, strict=True)]
