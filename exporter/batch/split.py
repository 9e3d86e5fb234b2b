"""A cell in parts: what may be exported by itself, what is worth it, and in which order jobs can be begun.

A part is what the cell makes of one folder of the checkpoint (`unet`; both halves of a `vae`), converted like
any cell but not judged. The cell's own job adopts the parts, adds what belongs to none of them, verifies and
commits.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.artifact import MANIFEST, Artifact
from exporter.batch.plan import Job
from exporter.batch.state import Row
from exporter.errors import ArtifactError
from exporter.planning import Plan, human
from exporter.staging import COMPLETE, Staging

if TYPE_CHECKING:
    from exporter.architectures import Component

PARTS = "parts"
MARK = "@"
"""Between a cell's name, which cannot hold it, and its part's."""
WEIGHT = 50_000_000
"""Bytes on the disk below which a part is not worth the start of a process (PyTorch alone takes seconds)."""


def groups(components: Sequence[Component]) -> dict[str, list[str]]:
    """Folder of the checkpoint → components that are made of it, in order. They may share files (a VAE's
    halves in safetensors) or weights (a second UNet beside the first), so one process makes them all."""
    found: dict[str, list[str]] = {}
    folder_of: dict[str, str] = {}
    for component in components:
        folder = folder_of.get(component.beside or "", component.folder)
        folder_of[component.name] = folder
        found.setdefault(folder, []).append(component.name)
    return found


def kept_whole(made: Plan) -> str | None:
    """Why parts would not be, byte for byte, what the whole conversion makes; None where they are."""
    if len(groups(made._components)) < 2:
        return "all its components are made of one folder of the model"
    if not made._target.apart:
        return f"{made._target.title} writes other bytes when a component is exported by itself"
    if made._target.calibration(made._options) is not None:
        return "activations are calibrated on a run of the whole pipeline"
    if made.verify and made._target.computes_in_float16(made._options):
        return "what float16 can hold is measured on a run of the whole pipeline"
    return None


def folder_of_parts(work: Path, job: Job) -> Path:
    """Where all parts of a cell lie, of this request and of earlier ones."""
    return work.absolute() / PARTS / job.row.id


def divide(job: Job, made: Plan, work: Path) -> None:
    """Give a job the parts that it could be made of (`Job.parts`), or say why not (`Row.split`). One that is
    there already is `kept`; what the cell's own staging folder has complete needs no part.

    Args:
        work: The batch's own folder. A part's path has the request's digest: another request never takes it.
    """
    if (job.output / MANIFEST).is_file():
        return  # it is made, and only to be collected
    why = kept_whole(made)
    if why is not None:
        job.row.split = f"whole: {why}"
        return
    staging = Staging(made.output, made.digest).root / COMPLETE
    place = folder_of_parts(work, job) / made.digest[:16]
    planned = {component.name: component for component in made.components}
    for folder, names in groups(made._components).items():
        if all((staging / f"{name}.json").is_file() for name in names):
            continue
        recipe = job.cell.recipe
        verify = recipe.verify.model_copy(update={"enabled": False})
        recipe = recipe.model_copy(update={"components": names, "verify": verify})
        row = Row(
            id=f"{job.row.id}{MARK}{folder}", part=folder,
            model=job.row.model, recipe=job.row.recipe, label=job.row.label, target=job.row.target,
            memory=max(planned[name].memory for name in names),
            disk=sum(planned[name].disk for name in names),
        )  # fmt: skip
        cell = replace(job.cell, recipe=recipe, output=place / folder)
        part = Job(row, cell, place / folder, whole=job)
        if stands(part.output):
            row.state = "kept"
            row.bytes = sum(file.bytes for file in Artifact.open(part.output).manifest.all_files())
        job.parts.append(part)
    if not job.parts:
        job.row.split = "whole: every component is complete already"


def stands(output: Path) -> bool:
    """Whether a part lies there with all its files (by their sizes; the cell's job reads the bytes)."""
    try:
        return not Artifact.open(output).other_sizes()
    except ArtifactError:
        return False


def settle(jobs: Sequence[Job], mode: str, slots: int | None = None, largest: int | None = None) -> None:
    """Decide which cells are begun as parts; the others lose theirs. Rows say how it was decided.

    Args:
        mode: `always`, `auto` or `never`. `auto` splits a cell of two parts of weight where a core would else
            be idle (more of them than cells), or where the cell as a whole fits no node and each of its parts
            does; and it always goes on with one of which a part is there. `apart`: no parts, for some nodes
            do not see the folder of the batch.
        slots: Cores of the cluster; None without one, where `auto` does not split.
        largest: Bytes of memory of its largest node.
    """
    for job in jobs:
        if slots is not None:
            job.row.memory = max(job.row.memory, job.judging)
        if not job.parts:
            continue
        why = "split: as the matrix says" if mode == "always" else _worth(job, len(jobs), slots, largest)
        if mode == "apart":
            why, job.row.split = None, "whole: not every node sees the folder where parts would lie"
        if mode == "never" or why is None:
            job.parts = []
            continue
        job.row.split = why
        job.row.parts = [part.row for part in job.parts]
        job.row.memory = min(job.row.memory, job.judging)


def _worth(job: Job, cells: int, slots: int | None, largest: int | None) -> str | None:
    if any(part.row.state == "kept" for part in job.parts):
        return "split: parts of it are there from an earlier run"
    heavy = [part for part in job.parts if part.row.disk >= WEIGHT]
    if slots is None or len(heavy) < 2:
        return None
    if slots > cells:
        return f"split: {slots} cores for {cells} cell{'s' if cells > 1 else ''}"
    needs = [job.judging, *(part.row.memory for part in job.parts)]
    if largest is not None and max(needs) <= largest < job.row.memory:
        return f"split: as a whole it takes {human(job.row.memory)}, more than any node gives"
    return None


class Line:
    """Jobs in the order in which they can be begun: a cell's own comes after all of its parts."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = list(jobs)

    def first(self) -> list[Job]:
        """What can be begun at once."""
        ready: list[Job] = []
        for job in self._jobs:
            missing = [part for part in job.parts if part.row.state != "kept"]
            ready += missing or [job]
        return ready

    def after(self, job: Job) -> list[Job]:
        """What can be begun now that a job has ended. Where a part has failed, its cell has too once the last
        of its parts has ended, and is given back as such; what is done is kept for the next run."""
        cell = job.whole
        if cell is None or any(part.row.state in ("waiting", "running") for part in cell.parts):
            return []
        failed = next((part.row for part in cell.parts if part.row.error is not None), None)
        if failed is not None and failed.error is not None:
            message = f"Its part {failed.part} was not made: {failed.error.message}"
            cell.row.state = "failed"
            cell.row.error = failed.error.model_copy(update={"message": message})
        return [cell]


def remove(folder: Path) -> None:
    """Delete the parts of a cell that is complete."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # where other cells have some
        folder.parent.rmdir()
