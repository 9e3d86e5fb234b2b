"""A target whose artifacts compute in PyTorch, so that the verifier can be tested without a backend.

Its runner is the real reference module, optionally with a fault planted in it: what the verifier
judges is real arithmetic, not a made-up number.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from exporter.architectures import Component, components_of
from exporter.artifact import (
    MANIFEST,
    Artifact,
    ComponentRecord,
    Manifest,
    SourceRecord,
    TensorRecord,
    hash_files,
)
from exporter.checkpoints import Checkpoint
from exporter.targets.base import Runner, RunOptions

Fault = Callable[[nn.Module], None]
"""Changes the module of one component in place."""
OutputFault = Callable[[dict[str, np.ndarray], Mapping[str, np.ndarray]], dict[str, np.ndarray]]
"""(outputs, inputs) → other outputs."""


class TorchRunner(Runner):
    """Computes with the reference module at a chosen precision."""

    def __init__(
        self, component: Component, record: ComponentRecord, fault: Fault | None, after: OutputFault | None
    ) -> None:
        self.precision = record.details.get("arithmetic", "float32")
        self.dtype = getattr(torch, self.precision)
        self.module = component.reference_module(self.dtype)
        if fault is not None:
            for parameter in self.module.parameters():  # or it is planted in the mapping all modules share
                parameter.data = parameter.data.clone()
            fault(self.module)
        self.after = after
        self.inputs, self.outputs = tuple(record.inputs), tuple(record.outputs)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._forward(inputs)[0]

    def module_names(self) -> list[str]:
        return [name for name, _ in self.module.inner.named_modules() if name]

    def intermediates(
        self, inputs: Mapping[str, np.ndarray], modules: Sequence[str]
    ) -> dict[str, np.ndarray]:
        return self._forward(inputs, modules)[1]

    def _forward(
        self, inputs: Mapping[str, np.ndarray], modules: Sequence[str] = ()
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        for spec in self.inputs:
            if str(inputs[spec.name].dtype) != spec.dtype:
                raise ValueError(f"{spec.name} is {inputs[spec.name].dtype}, not {spec.dtype}")
            for have, wanted in zip(inputs[spec.name].shape, spec.dims, strict=True):
                if isinstance(wanted, int) and have != wanted:
                    raise RuntimeError(f"{spec.name} is baked as {spec.dims}")
        seen: dict[str, np.ndarray] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, given: object, output: object) -> None:
                if isinstance(output, torch.Tensor):
                    seen[name] = output.float().numpy()

            return hook

        hooks = [self.module.inner.get_submodule(m).register_forward_hook(keep(m)) for m in modules]
        tensors = {}
        for name, array in inputs.items():
            tensor = torch.from_numpy(np.array(array))
            tensors[name] = tensor.to(self.dtype) if tensor.is_floating_point() and tensor.dim() else tensor
        with torch.no_grad():
            outputs = self.module(**tensors)
        for hook in hooks:
            hook.remove()
        arrays = {
            spec.name: np.asarray(o.float().numpy(), dtype=spec.dtype)
            for spec, o in zip(self.outputs, outputs, strict=True)
        }
        return (self.after(arrays, inputs) if self.after else arrays), seen


class TorchTarget:
    """Opens `TorchRunner`s; faults are given by component name."""

    name = "torch"

    def __init__(
        self,
        checkpoint: Checkpoint,
        faults: Mapping[str, Fault] | None = None,
        after: Mapping[str, OutputFault] | None = None,
    ) -> None:
        self.components = {c.name: c for c in components_of(checkpoint)}
        self.faults, self.after = dict(faults or {}), dict(after or {})

    def shipped(self, component: Component) -> Component:
        return component

    def open(self, root: Path, record: ComponentRecord, options: RunOptions | None = None) -> TorchRunner:
        return TorchRunner(
            self.components[record.name], record, self.faults.get(record.name), self.after.get(record.name)
        )


def make_artifact(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    components: Sequence[str] | None = None,
    arithmetic: str = "float32",
    options: dict | None = None,
) -> Path:
    """A folder with a true manifest; each component's one file holds its name."""
    if folder.exists():
        shutil.rmtree(folder)
    records = []
    for component in components_of(checkpoint):
        if components is not None and component.name not in components:
            continue
        path = folder / component.name / "module.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(component.name))
        records.append(
            ComponentRecord(
                name=component.name,
                entry=f"{component.name}/module.json",
                files=hash_files([path], folder),
                inputs=[
                    TensorRecord(name=s.name, dtype=s.dtype, dims=list(s.dims)) for s in component.inputs
                ],
                outputs=[
                    TensorRecord(name=s.name, dtype=s.dtype, dims=list(s.dims)) for s in component.outputs
                ],
                parameters=component.parameters,
                dtype="float16" if arithmetic == "float16" else "float32",
                details={"arithmetic": arithmetic},
            )
        )
    manifest = Manifest(
        target="torch",
        source=SourceRecord(
            source=checkpoint.source,
            pipeline_class=checkpoint.pipeline_class,
            files=checkpoint.files,
            overlays=list(checkpoint.overlays),
            notes=list(checkpoint.notes),
            **checkpoint.opened_with,
        ),
        options=options or {},
        components=records,
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2))
    return Artifact.open(folder).root
