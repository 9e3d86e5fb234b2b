"""One row of the demo: a target, what became of it, and what it painted."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from exporter.errors import BackendMissing
from exporter.progress import Progress

if TYPE_CHECKING:
    from PIL.Image import Image

    from exporter.artifact import Artifact
    from exporter.demo.pictures import Comparison

Status = Literal["PASS", "FAIL", "INCONCLUSIVE", "ERROR", "MISSING"]


@dataclass(frozen=True)
class ComponentRow:
    """One exported component: bytes of its files, seconds of its export, its own verdict if recorded."""

    name: str
    parameters: int
    bytes: int
    seconds: float
    verdict: str | None


@dataclass
class Painted:
    """Four pictures and the time they took.

    Attributes:
        load_seconds: From the files to a pipeline that can paint.
        seconds: Median time of one picture; the first pays for the runtime's warm-up.
    """

    pictures: list[Image] = field(repr=False)
    load_seconds: float
    seconds: float


@dataclass
class Row:
    """One target.

    Attributes:
        status: The verdict; ERROR when an exception stopped it; MISSING when its backend is not here.
        summary: The same in a sentence.
        install: The command that installs the backend (MISSING).
        folder / report: The artifact and its report's page.
        bytes: Of the artifact's files.
        verify_seconds / export_seconds: Wall time, both parts of one `convert`.
        comparisons: One per prompt, against the PyTorch reference.
        error: What stopped it (ERROR).
    """

    target: str
    title: str
    status: Status
    summary: str
    install: str | None = None
    folder: Path | None = None
    report: Path | None = None
    dtype: str | None = None
    bytes: int | None = None
    export_seconds: float | None = None
    verify_seconds: float | None = None
    painted: Painted | None = None
    components: list[ComponentRow] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list, repr=False)
    error: Exception | None = None

    @property
    def lowest_psnr(self) -> float | None:
        """In dB, over all pictures; infinite when all are identical."""
        return min((c.psnr for c in self.comparisons), default=None)

    def as_dict(self) -> dict[str, Any]:
        """JSON values; times in seconds, sizes in bytes, PSNR in dB."""
        return {
            "target": self.target,
            "status": self.status,
            "summary": self.summary,
            "install": self.install,
            "artifact": str(self.folder) if self.folder else None,
            "report": str(self.report) if self.report else None,
            "bytes": self.bytes,
            "export_seconds": self.export_seconds,
            "verify_seconds": self.verify_seconds,
            "load_seconds": self.painted.load_seconds if self.painted else None,
            "picture_seconds": self.painted.seconds if self.painted else None,
            "psnr_db": [c.psnr for c in self.comparisons],
        }


def missing_row(name: str) -> Row | None:
    """The row of a target whose backend is not installed; None when it is."""
    from exporter.targets import get_target

    try:
        target = get_target(name, require_backend=False)
    except BackendMissing as error:
        return Row(name, name, "MISSING", error.message, install=error.hint)
    if absent := target.missing():
        are = "is" if len(absent) == 1 else "are"
        return Row(
            name,
            target.title,
            "MISSING",
            f"{', '.join(absent)} {are} not installed here.",
            install=f'pip install "{target.package}"',
        )
    return None


def make_row(
    name: str,
    source: str,
    folder: Path,
    prompts: Sequence[str],
    reference: Sequence[Image],
    *,
    seed: int,
    steps: int,
    verify_settings: Mapping[str, Any],
    progress: Progress,
) -> Row:
    """Convert, verify, paint and compare. What goes wrong becomes the row's status, not an exception."""
    from exporter.targets import get_target

    row = Row(name, get_target(name).title, "ERROR", "", folder=folder)
    try:
        _convert(row, source, folder, verify_settings, progress)
        row.painted = paint_all(str(folder), prompts, seed=seed, steps=steps, progress=progress)
        _compare(row, reference)
    except Exception as error:  # the page shows it beside the others; the caller raises it afterwards
        row.status, row.error = "ERROR", error
        row.summary = getattr(error, "message", f"{type(error).__name__}: {error}")
    gc.collect()  # a runtime frees its weights with its last reference
    return row


def _convert(
    row: Row, source: str, folder: Path, verify_settings: Mapping[str, Any], progress: Progress
) -> None:
    from exporter.conversion import convert, make_plan

    plan = make_plan(source, row.target, folder)
    result = convert(plan, overwrite=True, progress=progress, verify_settings=verify_settings)
    if result.verdict not in ("PASS", "FAIL", "INCONCLUSIVE"):
        raise RuntimeError(f"convert gave no verdict ({result.verdict})")
    row.status, row.summary = result.verdict, result.summary  # type: ignore[assignment]
    row.report = _page_of(result.report)
    row.verify_seconds = result.verify_seconds
    row.export_seconds = result.seconds - result.verify_seconds
    row.dtype = str(plan.options.get("dtype", ""))
    row.bytes = sum(file.bytes for file in result.artifact.manifest.all_files())
    row.components = _components(result.artifact)


def _page_of(report: Path | None) -> Path | None:
    """The report's page where there is one beside its data."""
    if report is None:
        return None
    page = report.with_suffix(".html")
    return page if page.is_file() else report


def _components(artifact: Artifact) -> list[ComponentRow]:
    record = artifact.manifest.verification
    verdicts = record.components if record is not None else {}
    return [
        ComponentRow(
            name=component.name,
            parameters=component.parameters,
            bytes=sum(file.bytes for file in component.files),
            seconds=component.seconds,
            verdict=verdicts.get(component.name),
        )
        for component in artifact.manifest.components
    ]


def _compare(row: Row, reference: Sequence[Image]) -> None:
    from exporter.demo.pictures import compare

    assert row.painted is not None
    pairs = zip(row.painted.pictures, reference, strict=True)
    row.comparisons = [compare(picture, truth) for picture, truth in pairs]


def paint_all(source: str, prompts: Sequence[str], *, seed: int, steps: int, progress: Progress) -> Painted:
    """Paint every prompt from the same seed; each is timed by itself.

    Args:
        source: An artifact folder or a checkpoint.
    """
    from exporter.pipeline import load, paint

    progress.start("loading")
    began = time.monotonic()
    pipeline = load(source)
    loaded = time.monotonic() - began
    progress.done()
    pictures, seconds = [], []
    for prompt in prompts:
        began = time.monotonic()
        pictures += paint(pipeline, [prompt], seed=seed, steps=steps, progress=progress)
        seconds.append(time.monotonic() - began)
    return Painted(pictures, loaded, statistics.median(seconds))
