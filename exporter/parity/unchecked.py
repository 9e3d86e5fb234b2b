"""What cannot be judged on this system. It is INCONCLUSIVE, with a sentence what to do: never PASS."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exporter.artifact import SourceRecord, hash_files
from exporter.parity.schema import ComponentReport, Report, Settings
from exporter.parity.verdict import judge

if TYPE_CHECKING:
    from exporter.targets.base import Target

COMPILED = ".mlmodelc"
"""Of Core ML: a folder that holds a program for one kind of device and no way back to the graph."""


def unchecked_parts(target: Target, root: Path) -> list[ComponentReport]:
    """Parts of an artifact that nothing here runs, as components of the report."""
    parts: dict[str, str] = getattr(target, "unchecked", lambda root: {})(root)
    return [
        ComponentReport(name=path, entry=path, bytes=size_of(root / path), not_checked=why)
        for path, why in parts.items()
    ]


def is_compiled(path: Path) -> bool:
    """Whether the path is a compiled model and no artifact."""
    return path.suffix == COMPILED and path.is_dir()


def unjudged(path: Path, shown_path: str, report_dir: Path | None) -> Report:
    """The report on a compiled model by itself. Nothing is written unless a folder for it is named."""
    from exporter.parity.environment import environment

    files = hash_files([p for p in path.rglob("*") if p.is_file()], path)
    why = (
        f"{path.name} is a compiled model: only Core ML on a Mac can run it, and nothing in it says which "
        "checkpoint it was made from. Judge the artifact it belongs to: on a Mac `exporter verify ARTIFACT` "
        "runs the compiled models in its Resources, anywhere else the packages they were compiled from"
    )
    part = ComponentReport(name=path.name, entry=path.name, bytes=size_of(path), not_checked=why)
    report = Report(
        artifact=shown_path,
        target="coreml",
        source=SourceRecord(source="unknown", pipeline_class="unknown"),
        digest="",
        settings=Settings(k=4.0, prompts=[], steps=1, samples=1, seed=0, pipeline=False),
        complete=False,
        components=[part],
        environment=environment(),
        hashes={file.path: file.sha256 for file in files},
        command=f"exporter verify {shown_path}",
    )
    report = judge(report, report.settings.k)
    if report_dir is not None:
        report.save(report_dir)
    return report


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
