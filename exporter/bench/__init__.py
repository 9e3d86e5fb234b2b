"""Artifacts and the PyTorch pipeline side by side: time, memory, size, and how far their pictures are off.

Each competitor lives in a process of its own, so that memory is its own; they take turns, so that a
machine that slows down slows all of them.

>>> from exporter import bench
>>> bench.run(["builtin:shapes", "shapes-onnx"]).rows[1].speedup
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.bench.competitor import Competitor, Measured
from exporter.bench.request import Entrant, Settings
from exporter.errors import ExporterError, UsageError
from exporter.progress import NullProgress, Progress

if TYPE_CHECKING:
    from PIL.Image import Image

PROMPTS = {"builtin:shapes": "a large red star at the left on a blue background"}
GENERIC = "a photograph of an astronaut riding a horse"


@dataclass
class Row:
    """One competitor.

    Attributes:
        seconds: Of each counted picture.
        load / first: Seconds to open it, and of the first picture (compilation included).
        parts: Component → median seconds of one call.
        peak_memory / device_memory / disk: Bytes, of its process, of the GPU and of its files.
        arithmetic: What the runtime computes in, as it says itself, by component.
        precision_hint: What it was asked for.
        psnr: Of its picture against the first competitor's, in dB; None for the first.
        speedup: The first competitor's median over this one's.
        static: The size it was baked for, if it was.
        compiled: Whether parts of it were opened as compiled for the device (`exporter compile`).
        notes: Why something that was compiled was not used, or why the picture is not compared.
        given: The pictures it was given: what for → the file's name, or that it was the verifier's drawing.
        techniques: Names of those that change the PyTorch pipeline.
        error: Why it could not take part.
    """

    name: str
    target: str
    seconds: list[float] = field(default_factory=list)
    load: float = math.nan
    first: float = math.nan
    parts: dict[str, float] = field(default_factory=dict)
    peak_memory: int = 0
    device_memory: int = 0
    disk: int = 0
    arithmetic: str = ""
    precision_hint: str | None = None
    static: str | None = None
    compiled: bool = False
    notes: list[str] = field(default_factory=list)
    given: dict[str, str] = field(default_factory=dict)
    verdict: str | None = None
    techniques: list[str] = field(default_factory=list)
    psnr: float | None = None
    speedup: float | None = None
    error: ExporterError | None = None
    picture: Image | None = field(default=None, repr=False)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else math.nan

    @property
    def spread(self) -> tuple[float, float]:
        """Fastest and slowest counted picture, in seconds."""
        return (min(self.seconds), max(self.seconds)) if self.seconds else (math.nan, math.nan)

    def as_dict(self) -> dict[str, Any]:
        """JSON values; what is not a number is null."""
        values = {k: v for k, v in vars(self).items() if k not in {"error", "picture"}}
        values |= {"median": self.median, "fastest": self.spread[0], "slowest": self.spread[1]}
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        failed: dict[str, Any] = {"error": None, "hint": None, "exit_code": 0}
        if self.error is not None:
            failed = {
                "error": self.error.message, "hint": self.error.hint, "exit_code": self.error.exit_code
            }  # fmt: skip
        # Infinitely many decibels are no number of JSON, and not the same as none.
        return {**values, "identical": self.psnr == math.inf, **failed}


@dataclass
class BenchResult:
    """All competitors, in the order given; the first one is what the others are compared with."""

    settings: Settings
    rows: list[Row]
    environment: dict[str, Any]
    interleaved: bool = True

    @property
    def exit_code(self) -> int:
        """That of the first competitor that could not take part, or 0."""
        return next((row.error.exit_code for row in self.rows if row.error is not None), 0)

    @property
    def given(self) -> dict[str, str]:
        """Pictures that competitors were given, as `Row.given`: the same for all that took one."""
        return {name: what for row in self.rows for name, what in row.given.items()}

    @property
    def nothing_to_compare_with(self) -> bool:
        """The first competitor, which is the yardstick, took no part and others did."""
        return self.rows[0].error is not None and any(row.error is None for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "settings": vars(self.settings),
            "given": self.given,
            "rows": [row.as_dict() for row in self.rows],
            "environment": self.environment,
            "interleaved": self.interleaved,
            "exit_code": self.exit_code,
        }


def run(
    sources: Sequence[str | Entrant],
    *,
    prompt: str | None = None,
    interleave: bool = True,
    progress: Progress | None = None,
    **settings: Any,
) -> BenchResult:
    """Measure artifacts and checkpoints against the first of them.

    Args:
        sources: Artifacts, or checkpoints for the PyTorch pipeline, with techniques or without; the
            first is the yardstick.
        prompt: What is painted; None takes one that fits the first source.
        interleave: All at once in memory and in turn; else one after the other, for models that do
            not fit beside each other.
        settings: See `Settings`.

    Raises:
        UsageError: No source, one given twice, a number below 1, or artifacts that cannot paint the same.
        InputError: A file that is no picture.
    """
    report = progress or NullProgress()
    if not sources:
        raise UsageError("Nothing to measure: name at least one artifact or checkpoint.")
    entrants = [Entrant(each) if isinstance(each, str) else each for each in sources]
    if len({each.title for each in entrants}) != len(entrants):
        raise UsageError("The same source is named twice.")
    chosen = Settings(prompt=prompt or PROMPTS.get(_origin(entrants[0].source), GENERIC), **settings)
    if min(chosen.runs, chosen.steps) < 1 or chosen.warm_up < 0:
        raise UsageError("runs and steps must be at least 1, and warm-ups not below 0.")
    from exporter.bench.given import as_files
    from exporter.bench.tokens import common_tokens
    from exporter.parity.environment import environment

    chosen = replace(as_files(chosen), tokens=common_tokens(entrants))

    rows: list[Row] = []
    groups = [entrants] if interleave else [[each] for each in entrants]
    for group in groups:
        rows += _race(group, chosen, report)
    _compare(rows)
    return BenchResult(chosen, rows, environment(), interleave)


def _race(entrants: Sequence[Entrant], settings: Settings, progress: Progress) -> list[Row]:
    """Open every competitor, then let them paint in turn."""
    competitors: list[tuple[Row, Competitor | None]] = []
    try:
        for entrant in entrants:
            progress.start(f"opening {entrant.title}")
            competitor: Competitor | None = None
            try:
                if entrant.error is not None:
                    raise entrant.error
                competitor = Competitor(entrant, settings)
                row = _described(entrant.title, competitor.opened)
            except ExporterError as error:
                row = Row(entrant.title, "", error=error)
            competitors.append((row, competitor))
            progress.done()
        total = settings.warm_up + settings.runs
        for number in range(total):
            if not any(competitor for _, competitor in competitors):
                break
            progress.start(f"picture {number + 1} of {total}", len(competitors))
            for position, (row, competitor) in enumerate(competitors):
                if competitor is None:
                    continue
                progress.update(position, row.name)
                try:
                    _take(row, competitor.paint(), counted=number >= settings.warm_up)
                except ExporterError as error:
                    row.error = error
                    competitor.close()
                    competitors[position] = (row, None)
            progress.done()
    finally:
        for _, competitor in competitors:
            if competitor is not None:
                competitor.close()
    return [row for row, _ in competitors]


def _described(name: str, opened: dict[str, Any]) -> Row:
    known = {k: v for k, v in opened.items() if k in Row.__dataclass_fields__}
    return Row(name=name, **known)


def _take(row: Row, measured: Measured, *, counted: bool) -> None:
    if math.isnan(row.first):
        row.first = measured.seconds
    if counted:
        row.seconds.append(measured.seconds)
        row.parts = measured.parts
    row.peak_memory = max(row.peak_memory, measured.peak_memory)
    row.device_memory = max(row.device_memory, measured.device_memory)
    row.arithmetic = measured.arithmetic or row.arithmetic
    row.picture = measured.picture


def _compare(rows: list[Row]) -> None:
    """Speed and fidelity of every row against the first."""
    first = rows[0]
    for row in rows[1:]:
        if row.error is not None or first.error is not None or not row.seconds or not first.seconds:
            continue
        row.speedup = first.median / row.median
        if row.given != first.given:
            row.notes = [*row.notes, f"Its picture is not compared: {first.name} was given others."]
            continue
        if first.picture is not None and row.picture is not None and first.picture.size == row.picture.size:
            from exporter.demo.pictures import compare

            row.psnr = compare(row.picture, first.picture).psnr


def is_made(source: str) -> bool:
    """Whether a source is an artifact in a folder here, over which nothing can be laid any more."""
    from exporter.inspection import is_artifact

    return is_artifact(source)


def _origin(source: str) -> str:
    """What a source was made from, for the choice of a prompt."""
    if is_made(source):
        from exporter.artifact import Artifact

        return Artifact.open(Path(source)).manifest.source.source
    return source


__all__ = ["BenchResult", "Entrant", "Row", "Settings", "run"]
