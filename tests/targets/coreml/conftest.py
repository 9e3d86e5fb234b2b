"""Packages of the tiny checkpoint, converted once per test run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("coremltools")

from exporter.architectures import Component, components_of
from exporter.artifact import Artifact, ComponentRecord, Manifest, SourceRecord, hash_files
from exporter.checkpoints import resolve
from exporter.parity import Report, verify
from exporter.progress import NullProgress
from exporter.targets import RunOptions
from exporter.targets.coreml import CoremlOptions, CoremlTarget
from exporter.targets.coreml.runner import CoremlRunner

NAMES = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


@dataclass(frozen=True)
class Exported:
    """Components written below one folder, and how to open them."""

    root: Path
    components: dict[str, Component]
    records: dict[str, ComponentRecord]
    shared: list[Path]

    def open(self, name: str, **options: Any) -> CoremlRunner:
        runner = CoremlTarget().open(self.root, self.records[name], RunOptions(**options))
        assert isinstance(runner, CoremlRunner)
        return runner

    def package(self, name: str) -> Path:
        return self.root / self.records[name].entry


def export(source: Path, root: Path, names: tuple[str, ...] = NAMES, **options: Any) -> Exported:
    """Export components of a checkpoint below `root`, with the files around them."""
    target, parsed = CoremlTarget(), CoremlOptions(**options)
    checkpoint = resolve(str(source))
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
            dtype=result.dtype or parsed.dtype,
            details=dict(result.details),
            sizes=list(result.sizes),
        )
    shared = target.finish(checkpoint, list(components.values()), parsed, root)
    return Exported(root, components, records, shared)


@pytest.fixture(scope="session")
def half(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """All components in float16, split_einsum, as by default."""
    return export(tiny, tmp_path_factory.mktemp("coreml16"))


@pytest.fixture(scope="session")
def single(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """UNet and text encoder in float32, attention left to coremltools."""
    root = tmp_path_factory.mktemp("coreml32")
    return export(tiny, root, ("text_encoder", "unet"), dtype="float32", attention="original")


def as_artifact(exported: Exported, root: Path, names: Sequence[str]) -> Artifact:
    """Some of the packages, copied below a manifest of their own."""
    root.mkdir(parents=True)
    checkpoint = exported.components[names[0]].checkpoint
    for name in names:
        shutil.copytree(exported.package(name), root / exported.records[name].entry)
    artifact = Artifact(
        root,
        Manifest(
            target="coreml",
            source=SourceRecord(source=checkpoint.source, pipeline_class=checkpoint.pipeline_class),
            components=[exported.records[name] for name in names],
        ),
    )
    artifact.save()
    return artifact


@pytest.fixture(scope="session")
def truths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of truths and floors for every verification."""
    return tmp_path_factory.mktemp("truths")


def judge(artifact: Artifact, truths: Path, **settings: Any) -> Report:
    """Verify, components only."""
    few: dict[str, Any] = {"steps": 2, "samples": 2, "prompts": ["a red star"], "pipeline": False}
    return verify(artifact.root, cache=truths, **(few | settings))
