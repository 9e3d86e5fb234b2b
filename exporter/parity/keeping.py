"""What stays of a verification: its inputs, its entry in the manifest, and the command that repeats it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.artifact import Verdict, VerificationRecord, now
from exporter.errors import UsageError
from exporter.parity.peaks import peak_record
from exporter.parity.schema import Report, Settings
from exporter.parity.verdict import combine

if TYPE_CHECKING:
    from exporter.parity.cases import Inputs
    from exporter.progress import Progress


def check_settings(settings: Settings) -> None:
    """
    Raises:
        UsageError: One of them makes no sense.
    """
    if not settings.k > 0:
        raise UsageError(f"k must be a positive number, not {settings.k}.")
    if settings.steps < 1 or settings.samples < 1:
        raise UsageError("steps and samples must be at least 1.")
    if settings.prompts and not all(isinstance(p, str) for p in settings.prompts):
        raise UsageError("Prompts must be strings.")


def save_inputs(captured: Mapping[str, Sequence[Inputs]], path: Path) -> None:
    """Every input of every component, as `component/case/input`."""
    from safetensors.torch import save_file

    tensors = {
        f"{name}/{case.id}/{key}": tensor.contiguous().clone()
        for name, cases in captured.items()
        for case in cases
        for key, tensor in case.tensors.items()
    }
    save_file(tensors, path)


def record_of(report: Report, where: str | None) -> VerificationRecord:
    """What the manifest keeps of a report; `where` is its place in the artifact, if it lies there."""

    def others(name: str) -> list[Verdict]:
        return [size.components[name] for size in report.sizes if name in size.components]

    return VerificationRecord(
        verdict=report.verdict,
        report=where,
        when=now(),
        digest=report.digest,
        summary=report.summary,
        components={c.name: combine([c.verdict, *others(c.name)]) for c in report.components},
        peaks={c.name: peak for c in report.components if (peak := peak_record(c)) is not None},
    )


def command(artifact: str, settings: Settings, against: str | None) -> str:
    """The shell command that verifies again."""
    s = settings
    parts = ["exporter", "verify", artifact]
    if against is not None:
        parts += ["--against", against]
    for flag, value in (("k", f"{s.k:g}"), ("steps", s.steps), ("samples", s.samples), ("seed", s.seed)):
        parts += [f"--{flag}", str(value)]
    for flag, limit in (("min-sqnr", s.min_sqnr), ("min-psnr", s.min_psnr)):
        if limit is not None:
            parts += [f"--{flag}", f"{limit:g}"]
    return shlex.join(parts)


class Ticker:
    """Counts steps of one task."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.count = progress, 0

    def __call__(self, detail: str) -> None:
        self.count += 1
        self.progress.update(self.count, detail)
