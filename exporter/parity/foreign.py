"""Artifacts without a manifest of ours, such as an optimum export folder: described by looking."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.artifact import (
    MANIFEST,
    Artifact,
    ComponentRecord,
    Manifest,
    SourceRecord,
    TensorRecord,
    hash_files,
)
from exporter.errors import ArtifactError

if TYPE_CHECKING:
    from exporter.architectures.base import Component
    from exporter.checkpoints import Checkpoint
    from exporter.targets.base import Target

ENTRIES = {"onnx": "model.onnx", "openvino": "openvino_model.xml"}
"""The file a runtime opens, by target, in a component's folder of the diffusers layout."""


def has_manifest(path: Path) -> bool:
    """Whether the folder says of itself what it is."""
    return (path / MANIFEST).is_file()


OPTIONAL = frozenset({"vae_encoder", "safety_checker"})
"""What an export for text to image may leave out."""


def describe(path: Path, against: str | None, wanted: Sequence[str] | None = None) -> Artifact:
    """An artifact with a manifest made up from what lies there. Nothing is written.

    Args:
        path: A folder with a folder per component.
        against: The checkpoint it is claimed to be made from.
        wanted: Components that must be there; None wants those that a picture needs.

    Raises:
        ArtifactError: No such folder, no `against`, nothing in it that a target opens, or a component
            is missing.
    """
    from exporter.architectures import components_of
    from exporter.checkpoints import resolve
    from exporter.targets import get_target

    if not path.is_dir():
        raise ArtifactError(f"There is no artifact folder at {path}.")
    if against is None:
        raise ArtifactError(
            f"{path} has no {MANIFEST}, so nothing says what it was made from.",
            hint=f"Name the checkpoint: exporter verify {path} --against SOURCE.",
        )
    checkpoint = resolve(against)
    components = components_of(checkpoint)
    name = _target_of(path, components)
    target = get_target(name)
    for component in components:
        needed = component.name in wanted if wanted is not None else component.name not in OPTIONAL
        if needed and not (path / component.name / ENTRIES[name]).is_file():
            raise ArtifactError(
                f"{path} has no {component.name}/{ENTRIES[name]}: its {component.name} is missing.",
                hint="Export it as well, or name the components to judge: --component NAME.",
            )
    records = [
        _record(path, component, ENTRIES[name], target)
        for component in components
        if (path / component.name / ENTRIES[name]).is_file()
    ]
    return Artifact(path, _manifest(checkpoint, name, records))


def _target_of(path: Path, components: Sequence[Component]) -> str:
    for name, entry in ENTRIES.items():
        if any((path / component.name / entry).is_file() for component in components):
            return name
    wanted = " or ".join(f"{components[0].name}/{entry}" for entry in ENTRIES.values())
    raise ArtifactError(f"{path} holds no exported component: there is no {wanted}, nor any other.")


def _manifest(checkpoint: Checkpoint, target: str, records: list[ComponentRecord]) -> Manifest:
    source = SourceRecord(
        source=checkpoint.source, revision=checkpoint.revision, pipeline_class=checkpoint.pipeline_class
    )
    return Manifest(target=target, source=source, components=records)


def _record(root: Path, component: Component, entry: str, target: Target) -> ComponentRecord:
    folder = root / component.name
    files = hash_files([p for p in folder.rglob("*") if p.is_file()], root)
    record = ComponentRecord(
        name=component.name,
        entry=f"{component.name}/{entry}",
        files=files,
        inputs=[TensorRecord(name=s.name, dtype=s.dtype, dims=list(s.dims)) for s in component.inputs],
        outputs=[TensorRecord(name=s.name, dtype=s.dtype, dims=list(s.dims)) for s in component.outputs],
        parameters=component.parameters,
        dtype=_stored_dtype(sum(f.bytes for f in files), component.parameters),
    )
    with target.open(root, record) as runner:
        if record.dtype in ("float32", "float16") and runner.weights is not None:
            record.dtype = runner.weights
        record.inputs = [_with_symbols(t, component) for t in runner.inputs]
        record.outputs = [_with_symbols(t, component) for t in runner.outputs]
    return record


def _stored_dtype(size: int, parameters: int) -> str:
    """By bytes to a weight: the graph itself takes little beside them."""
    each = size / max(parameters, 1)
    return "float32" if each > 3 else "float16" if each > 1.6 else "int8" if each > 0.8 else "int4"


def _with_symbols(tensor: TensorRecord, component: Component) -> TensorRecord:
    """The file's own declaration, its dynamic dims under our names."""
    specs = [s for s in (*component.inputs, *component.outputs) if s.name == tensor.name]
    if not specs or len(specs[0].dims) != len(tensor.dims):
        return tensor
    dims = [
        ours if isinstance(theirs, str) and isinstance(ours, str) else theirs
        for ours, theirs in zip(specs[0].dims, tensor.dims, strict=True)
    ]
    return TensorRecord(name=tensor.name, dtype=tensor.dtype, dims=dims)
