"""`batch.json`: what became of every cell. Always whole on disk, so that a run can be taken up again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exporter.artifact import now, write_text_atomic
from exporter.errors import ArtifactError, ExporterError

STATE = "batch.json"
State = Literal["waiting", "running", "done", "kept", "failed", "uncollected"]
WORST_FIRST = (1, 3, 2, 4, 6, 7, 5)
"""Exit codes from the worst to the mildest. FAIL is first: something wrong stands on the disk. Then what
could not be made, by how much is to be mended: a broken input or a bug, a wrong request, something missing,
too little memory or disk, the network. INCONCLUSIVE is last: it is not known to be wrong."""


class Failure(BaseModel):
    """What stopped a cell."""

    model_config = ConfigDict(extra="forbid")

    type: str
    message: str
    hint: str | None = None
    exit_code: int


class Row(BaseModel):
    """One cell.

    Attributes:
        id: Its name, and its folder's in the output folder.
        model / recipe / label: What it is made of; `label` are the values of the recipe's own axes.
        state: `kept` is complete from an earlier run; `uncollected` is made, judged, and not at the URL.
        verdict / summary: As in the artifact's manifest; None when verification was off or it got not so far.
        bytes: Of the artifact.
        seconds: Wall time of the attempt that finished it.
        memory / disk: Estimates, bytes.
        report: Its page, relative to the output folder.
        attempts: How often it was begun, over all runs.
        digest: Identity of the finished request (`Plan.digest`). While it is the same, the source need not be
            hashed to see whether the cell is complete.
        where: The node that finished it, on a cluster.
        collected: URL of the artifact's folder, once it is whole there.
        part: Of a part of a cell: which (`exporter.batch.split`). Its id is `<cell>@<part>`.
        split: Whether the cell is made in parts, and why; empty where that was never asked for.
        parts: Of a cell that is: theirs.
    """

    model_config = ConfigDict(extra="forbid")

    id: str
    model: str
    recipe: str
    label: str = ""
    target: str
    state: State = "waiting"
    verdict: str | None = None
    summary: str = ""
    bytes: int = 0
    seconds: float = 0.0
    memory: int = 0
    disk: int = 0
    report: str | None = None
    attempts: int = 0
    digest: str | None = None
    where: str | None = None
    error: Failure | None = None
    collected: str | None = None
    part: str | None = None
    split: str = ""
    parts: list[Row] = Field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """Of this cell alone. One that has not run has none yet (0)."""
        judged = {"FAIL": 1, "INCONCLUSIVE": 5}.get(self.verdict or "", 0)
        return worst([self.error.exit_code, judged]) if self.error is not None else judged

    def fail(self, error: ExporterError) -> None:
        """It cannot be, or was stopped."""
        self.state = "failed"
        self.error = Failure(
            type=type(error).__name__, message=error.message, hint=error.hint, exit_code=error.exit_code
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**self.model_dump(mode="json"), "exit_code": self.exit_code}


class Summary(BaseModel):
    """`batch.json`."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["exporter-batch"] = "exporter-batch"
    schema_version: int = 1
    name: str
    description: str = ""
    created: str = Field(default_factory=now)
    updated: str = Field(default_factory=now)
    rows: list[Row] = Field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """The worst of the cells' (`WORST_FIRST`)."""
        return worst([row.exit_code for row in self.rows])

    def save(self, folder: Path) -> None:
        """Write it atomically."""
        self.updated = now()
        write_text_atomic(folder / STATE, self.model_dump_json(indent=2) + "\n")

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "batch": self.name,
            "rows": [row.as_dict() for row in self.rows],
            "exit_code": self.exit_code,
        }


def worst(codes: list[int]) -> int:
    """The worst exit code; one that is in no table is worse than all."""
    bad = [code for code in codes if code]
    order = {code: place for place, code in enumerate(WORST_FIRST)}
    return min(bad, key=lambda code: order.get(code, -1), default=0)


def earlier(folder: Path) -> Summary | None:
    """What an earlier run left, or None.

    Raises:
        ArtifactError: A `batch.json` that is not ours.
    """
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        return Summary.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        raise ArtifactError(
            f"{path} is not the record of a batch: {str(error).splitlines()[0]}.",
            hint="Move it away, or choose another folder with -o.",
        ) from error
