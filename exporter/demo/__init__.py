"""The demo: one model to every installed format, verified, painted, shown on one page.

>>> from pathlib import Path
>>> from exporter import demo
>>> result = demo.run(Path("artifacts/demo"))
>>> result.page
PosixPath('artifacts/demo/index.html')
>>> result.raise_for_verdict()
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import (
    BackendMissing,
    DestinationError,
    UsageError,
    VerificationFailed,
    VerificationInconclusive,
)
from exporter.progress import NullProgress, Prefixed, Progress

if TYPE_CHECKING:
    from exporter.demo.rows import Painted, Row

PAGE = "index.html"


@dataclass(frozen=True)
class DemoResult:
    """What the demo made.

    Attributes:
        page: The HTML page.
        rows: One per target, those that are not installed included.
        seconds: Wall time in all.
    """

    page: Path
    rows: list[Row]
    source: str = "builtin:shapes"
    seed: int = 7
    steps: int = 25
    seconds: float = 0.0
    prompts: list[str] = field(default_factory=list)
    reference: Painted | None = field(default=None, repr=False)

    @property
    def ok(self) -> bool:
        """Every target that was tried passed, and at least one was tried."""
        tried = [row for row in self.rows if row.status != "MISSING"]
        return bool(tried) and all(row.status == "PASS" for row in tried)

    def as_dict(self) -> dict[str, Any]:
        """JSON values: `page`, `ok`, `source`, `seed`, `steps`, `seconds` and one entry per target."""
        return {
            "page": str(self.page),
            "ok": self.ok,
            "source": self.source,
            "seed": self.seed,
            "steps": self.steps,
            "seconds": self.seconds,
            "prompts": self.prompts,
            "picture_seconds": self.reference.seconds if self.reference else None,
            "rows": [row.as_dict() for row in self.rows],
        }

    def raise_for_verdict(self) -> None:
        """Nothing when every target that was tried passed.

        Raises:
            VerificationFailed: An artifact was judged FAIL.
            Exception: What stopped a target, if one was stopped and none failed.
            VerificationInconclusive: An artifact could not be judged.
        """
        if failed := [row.title for row in self.rows if row.status == "FAIL"]:
            raise VerificationFailed(f"The verification said FAIL: {', '.join(failed)}.")
        for row in self.rows:
            if row.error is not None:
                raise row.error
        if open_rows := [row.title for row in self.rows if row.status == "INCONCLUSIVE"]:
            raise VerificationInconclusive(f"The verification was INCONCLUSIVE: {', '.join(open_rows)}.")
        if not self.ok:
            raise VerificationInconclusive("Nothing was verified.")


def run(
    output: Path,
    *,
    targets: Sequence[str] | None = None,
    source: str = "builtin:shapes",
    progress: Progress | None = None,
    seed: int = 7,
    steps: int = 25,
    verify_settings: Mapping[str, Any] | None = None,
) -> DemoResult:
    """Convert `source` to each target, verify, paint four prompts with each, and write one page.

    The artifacts go to `output/<target>` and replace those of an earlier run. The page is written
    even when a target fails; `DemoResult.raise_for_verdict` tells.

    Args:
        output: Folder of the page and the artifacts.
        targets: Names as after `--to`; None takes all and shows those that are not installed.
        seed: Of the first noise, the same for every picture and every target.
        steps: Scheduler steps of a picture.
        verify_settings: Keyword arguments of `exporter.parity.verify`.

    Raises:
        UsageError: Unknown target, or fewer than one step.
        BackendMissing: A target that was asked for, or every target, is not installed.
        DestinationError: `output` cannot be a folder.
        CheckpointError: The source is missing or damaged.
    """
    report = progress or NullProgress()
    began = time.monotonic()
    if steps < 1:
        raise UsageError(f"A picture needs at least one step, not {steps}.")
    names, absent = _select(targets)
    output = Path(output).expanduser()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DestinationError(
            f"{output} cannot be written: {(error.strerror or str(error)).lower()}.",
            hint="Choose another folder with -o.",
        ) from error

    from exporter.demo.page import Page, write_page
    from exporter.demo.prompts import choose_prompts
    from exporter.demo.rows import make_row, paint_all

    prompts, about_prompts = choose_prompts(source)
    reference = paint_all(source, prompts, seed=seed, steps=steps, progress=Prefixed(report, "PyTorch"))
    rows = {row.target: row for row in absent}
    for name in names:
        rows[name] = make_row(
            name,
            source,
            output / name,
            prompts,
            reference.pictures,
            seed=seed,
            steps=steps,
            verify_settings=dict(verify_settings or {}),
            progress=Prefixed(report, name),
        )
    order = [*names, *(row.target for row in absent)]
    result = DemoResult(
        page=output / PAGE,
        rows=[rows[name] for name in order],
        source=source,
        seed=seed,
        steps=steps,
        seconds=time.monotonic() - began,
        prompts=prompts,
        reference=reference,
    )
    write_page(Page(result, output, about_prompts))
    return result


def _select(wanted: Sequence[str] | None) -> tuple[list[str], list[Row]]:
    """The targets to run, and rows for those that are not installed."""
    from exporter.demo.rows import missing_row
    from exporter.targets import get_target, target_names

    if wanted:
        names = list(dict.fromkeys(wanted))
        for name in names:
            get_target(name)
        return names, []
    absent = [row for name in target_names() if (row := missing_row(name)) is not None]
    missing = {row.target for row in absent}
    names = [name for name in target_names() if name not in missing]
    if not names:
        raise BackendMissing(
            "No target's backend is installed, so there is nothing to show.",
            hint='pip install "exporter[onnx]"',
        )
    return names, absent


__all__ = ["DemoResult", "run"]
